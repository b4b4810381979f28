"""What waits for a GPU, part by part; gpu.py runs them. Where there is no CUDA device each has a small form."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

import vgt
from vgt.config import GeneratorConfig
from vgt.files.reading import read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.networks import few_rows
from vgt.run import compiled, token_step
from vgt.run import generation as generation_module
from vgt.run.generation import Generator, generate
from vgt.sampling import PRESETS, SamplingSettings

from . import timing
from .cases import BUNDLED, INTERNVL3_1_6B, NAME, QWEN2_5_VL_2B, Row, generation, random_weights
from .timing import in_turn

ROOT = Path(__file__).parent.parent
LIMIT = 480
"""Seconds a part may take."""
SMALL = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if SMALL else "cuda")
DTYPE = torch.float32 if SMALL else torch.bfloat16
PROMPT = "a red circle above a blue square"


@contextmanager
def small_form() -> Iterator[None]:
    """Without a GPU: each thing is timed for a moment, and what would be compiled is only traced."""
    with ExitStack() as changed:
        for module in (compiled, generation_module):
            changed.enter_context(patch.object(module, "check_compiler", lambda _: None))
        traced = partial(torch.compile, backend="eager", dynamic=False)
        changed.enter_context(patch.object(compiled, "_compile", traced))
        changed.enter_context(patch.object(timing, "ENOUGH", 0.1))
        yield


def note(text: str) -> Row:
    return Row("", {}, note=f"(small form) {text}" if SMALL else text)


def tests() -> Iterator[Row]:
    """Run the tests that only a CUDA device lets through."""
    if importlib.util.find_spec("pytest") is None:
        yield note("pytest is not installed, so no test was run.")
        return
    command = [sys.executable, "-m", "pytest", "-q", "tests/run/test_graphs.py", "-k", "cuda_device"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    yield note(f"Tests that need CUDA: {done.stdout.strip().splitlines()[-1]}")
    if done.returncode:
        raise RuntimeError("a test failed: " + done.stdout.strip().splitlines()[-1])


def agreement() -> Iterator[Row]:
    """Compare graphs, compiled and eager steps, and each with float32."""
    exact = vgt.load(BUNDLED, DEVICE, torch.float32).generate(PROMPT, seed=1, graphs=False)
    for dtype in (torch.float32, torch.bfloat16):
        model = vgt.load(BUNDLED, DEVICE, dtype)
        eager = model.generate(PROMPT, seed=1, graphs=False)
        replayed = model.generate(PROMPT, seed=1)
        with_compiler = model.generate(PROMPT, seed=1, graphs=False, compile=True)
        apart = [f"{(one - eager).abs().max().item():.1e}" for one in (replayed, with_compiler)]
        name, far = str(dtype)[6:], (eager - exact).abs().mean().item()
        yield note(f"{name}: graphs against eager {apart[0]}, compiled {apart[1]}; from float32 {far:.1e} on average.")


def allocator() -> Iterator[Row]:
    """Do the same with cudaMallocAsync, which PyTorch reads from the environment when it starts."""
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "" if SMALL else "backend:cudaMallocAsync"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", "agreement", "--to", "-"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    for row in json.loads(done.stdout.splitlines()[-1]):
        yield note(f"cudaMallocAsync, {row['note'].removeprefix('(small form) ')}")


def speed(family: str, batch: int) -> Iterator[Row]:
    """Time random weights of the real size beside the baseline: published, then fast settings."""
    bundled = vgt.load(BUNDLED)
    name, generator, side = _real_size(family)
    for tokens in (1,) if SMALL else (1, 4, 16):
        yield generation(name, generator, bundled.tokenizer, side, batch, tokens, 1)
        settings = SamplingSettings(side, side, tokens_per_step=tokens).over(PRESETS["fast"])

        def draw(graphs, settings=settings):
            return generate(generator, bundled.tokenizer, [PROMPT] * batch, settings=settings, graphs=graphs)

        seconds = in_turn(DEVICE, 1, ours=lambda d=draw: d(True), eager=lambda d=draw: d(False))
        yield Row(f"{name}, {side}x{side}, batch {batch}, {tokens} a step, fast", seconds)


def ways() -> Iterator[Row]:
    """Time what a user can choose from, published settings: CUDA graphs, compiled, flash-attn, and without them.

    "Products" is compiled without the flow head's sums for few rows (vgt/networks/few_rows.py).
    """
    name, generator, side = _real_size("internvl3")
    tokenizer = vgt.load(BUNDLED).tokenizer
    settings = SamplingSettings(side, side)

    def draw(flash=False, few=few_rows.FEW, **how):
        plain, usual = token_step.decodes_with_flash, few_rows.FEW
        few_rows.FEW = few
        if not flash:
            token_step.decodes_with_flash = lambda *_: False
        try:
            return generate(generator, tokenizer, PROMPT, settings=settings, **how)
        finally:
            token_step.decodes_with_flash, few_rows.FEW = plain, usual

    contenders = {
        "eager": lambda: draw(graphs=False),
        "compiled": lambda: draw(graphs=False, compile=True),
        "compiled, products": lambda: draw(graphs=False, compile=True, few=0),
        "graphs": draw,
        "compiled in graphs": lambda: draw(compile=True),
    }
    if importlib.util.find_spec("flash_attn"):
        contenders["graphs, flash-attn"] = lambda: draw(flash=True)
        apart = (draw(flash=True) - draw()).abs().mean().item()
        generator.graphs.clear()
        yield note(f"flash-attn in published decoding: {apart:.1e} from without it on average.")
    else:
        yield note("flash-attn is not installed, so it was not tried.")
    seconds = in_turn(DEVICE, 1, **contenders)
    yield note(f"{name}, {side}x{side}: " + ", ".join(f"{way} {taken:.3f} s" for way, taken in seconds.items()) + ".")


def _real_size(family: str) -> tuple[str, Generator, int]:
    """Name, generator and side of the picture: random weights of a published size; the bundled model, if small."""
    if SMALL:
        model = vgt.load(BUNDLED, DEVICE, DTYPE)
        return NAME, model.generator, 2 * model.config.token_pixels
    language = {"internvl3": INTERNVL3_1_6B, "qwen2_5_vl": QWEN2_5_VL_2B}[family]
    made = Generator(GeneratorConfig(language), family, device="meta", dtype=DTYPE)
    return f"{family}, real size", random_weights(made, DEVICE), 448


def two_models() -> Iterator[Row]:
    """Let two models draw in turn, each with its graphs."""
    models = [vgt.load(BUNDLED, DEVICE, DTYPE) for _ in range(2)]
    first = [model.generate(PROMPT, seed=seed) for seed, model in enumerate(models)]
    for _ in range(2):
        for seed, model in enumerate(models):
            if not torch.equal(model.generate(PROMPT, seed=seed), first[seed]):
                raise RuntimeError("a model that took turns with another drew another picture")
    yield note("Two models in turn draw the same pictures each time.")


def in_host(card: int | None, dtype: str) -> Iterator[Row]:
    """Draw in the real ComfyUI, on a card of so many GB or the whole one; what is left after /free."""
    sys.path[:0] = [str(ROOT / "scripts")]
    from comfy_host import Host

    if not (ROOT_COMFYUI / "main.py").is_file():
        yield note("There is no ComfyUI here (COMFYUI_PATH names one), so nothing was drawn in it.")
        return
    with tempfile.TemporaryDirectory() as base:
        arguments = []
        if card:
            total = card if SMALL else torch.cuda.get_device_properties(0).total_memory / 2**30
            arguments = ["--reserve-vram", f"{max(0.6, total - card):.1f}"]
            limit = Path(base) / "custom_nodes" / "limit.py"  # what the host might not keep to, PyTorch does
            limit.parent.mkdir(parents=True)
            share = f"torch.cuda.set_per_process_memory_fraction({min(1, card / total)})"
            limit.write_text(f"import torch\nif torch.cuda.is_available():\n    {share}\nNODE_CLASS_MAPPINGS = {{}}\n")
        with Host(ROOT_COMFYUI, base, sys.executable, arguments, log=Path(base) / "host.log") as host:
            name = BUNDLED.name
            if not SMALL:
                name = "random.safetensors"
                save_checkpoint(_random_checkpoint(), host.base / "models" / "vgt" / name)
            before = _vram_free(host)
            seconds = [_draw_in(host, name, dtype, seed) for seed in range(1 if SMALL else 2)]
            drawn = _vram_free(host)
            host.free()
            time.sleep(1)
            told = f"{(before - drawn) / 1e9:.2f} GB taken, {(before - _vram_free(host)) / 1e9:.2f} after /free"
            where = f"card of {card} GB" if card else "whole card"
            partly = "partially" in host.log()
            yield note(
                f"In ComfyUI, {where}, {dtype}: {seconds[-1]:.1f} s a picture, {told}, "
                f"weights {'partly' if partly else 'wholly'} on the device."
            )


ROOT_COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".cache" / "ComfyUI")


def _vram_free(host) -> int:
    return host.get("/system_stats")["devices"][0]["vram_free"]


def _draw_in(host, name: str, dtype: str, seed: int) -> float:
    side = 56 if SMALL else 448
    graph = {
        "load": {"class_type": "VGTLoader", "inputs": {"model": name, "dtype": dtype}},
        "draw": {
            "class_type": "VGTARSampler",
            "inputs": {
                **{"model": ["load", 0], "prompt": PROMPT, "negative_prompt": "", "seed": seed, "width": side},
                **{"height": side, "batch_size": 1, "cfg": 4.5, "tokens_per_step": 1, "order": "random"},
                **{"decoding": "published", "grouping": "uniform", "denoise": 1.0},
            },
        },
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["draw", 0], "filename_prefix": "gpu"}},
    }
    began = time.monotonic()
    host.run(graph, timeout=LIMIT)
    return time.monotonic() - began


def _random_checkpoint():
    """A model file of the published 1.6B size: the bundled model's tokenizer, a generator of random weights."""
    bundled = read_checkpoint(BUNDLED)
    config = GeneratorConfig(INTERNVL3_1_6B)
    made = Generator(config, bundled.config.family, bundled.config.token_pixels, device="meta", dtype=torch.bfloat16)
    weights = random_weights(made, torch.device("cpu")).state_dict()
    kept = {name: tensor for name, tensor in bundled.tensors.items() if not name.startswith("generator.")}
    tensors = kept | {f"generator.{name}": tensor for name, tensor in weights.items()}
    return replace(bundled, config=replace(bundled.config, generator=config), tensors=tensors)


PARTS = {
    "tests": tests,
    "agreement": agreement,
    "allocator": allocator,
    "two models": two_models,
    "ways": ways,
    "1.6B, batch 1": lambda: speed("internvl3", 1),
    "1.6B, batch 4": lambda: speed("internvl3", 4),
    "2B, batch 1": lambda: speed("qwen2_5_vl", 1),
    "2B, batch 4": lambda: speed("qwen2_5_vl", 4),
    "host": lambda: in_host(None, "bf16"),
    "host, 8 GB": lambda: in_host(8, "bf16"),
    "host, 12 GB": lambda: in_host(12, "bf16"),
    "host, 16 GB": lambda: in_host(16, "bf16"),
    "host, fp8": lambda: in_host(None, "fp8_e4m3fn"),
}
"""What is done, in this order: what says whether the rest is worth anything comes first."""
