"""The pack in a process with the host's modules but no server: its start, its memory, what it stores and imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap

import pytest
import torch

from graphs import INTERN
from host import ROOT, comfyui_path, is_newer

IN_HOST = """
    import importlib.util, json, sys, time, types
    comfyui, root, models, intern, *sys.argv[1:] = sys.argv[1:]
    sys.path.insert(0, comfyui)
    import comfy.options
    comfy.options.enable_args_parsing()
    began = time.process_time()
    import torch, comfy.sd, comfy.model_management, comfy_api.latest, folder_paths
    of_host = time.process_time() - began

    before = set(sys.modules)
    began = time.process_time()
    spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
    pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    seconds = time.process_time() - began
    said = {"seconds": seconds, "of_host": of_host, "new": sorted(set(sys.modules) - before)}

    from pack.nodes import sampling
    from pack.nodes.host import drawing, loading, progress
    from pack.vgt.run.flow import FlowSettings
    from pack.vgt.sampling import SamplingSettings
    loading.register_model_folder()
    folder_paths.add_model_folder_path("vgt", models)
    model, _ = loading.load_model(intern, "fp8_e4m3fn")
    layers = {n: m for n, m in model.patcher.model.named_modules() if isinstance(m, torch.nn.Linear)}
    said["stored"] = sorted({str(m.weight.dtype) for n, m in layers.items() if "flow_head." not in n})
    said["head"] = sorted({str(m.weight.dtype) for n, m in layers.items() if "flow_head." in n})
    said["computed"] = str(model.patcher.model.dtype)

    model, _ = loading.load_model(intern, "fp32")
    settings = dict(
        prompt="a cat", negative_prompt="", width=56, height=84, batch_size=3, denoise=1.0, seed=4, cfg=3.0,
        tokens_per_step=1, order="random", decoding="published", grouping="uniform",
    )
    flow = SamplingSettings(flow=FlowSettings(steps=2))
    whole = sampling.sample(model, None, flow, **settings)[0]["samples"]
    from pack.nodes.encode import VGTEncode
    encoded = VGTEncode.execute(torch.rand(1, 56, 84, 3), model.vae).result[0]
    once = settings | {"batch_size": 1, "width": 448}
    latents = {"drawn": sampling.sample(model, None, flow, **once | {"width": 56})[0], "encoded": encoded}
    for name, channels, ratio in (("of 8", 4, 8), ("of 16", 32, 16), ("says nothing", 32, None)):
        empty = {"samples": torch.zeros(1, channels, 4, 7)} | ({"downscale_ratio_spacial": ratio} if ratio else {})
        latents[name] = sampling.sample(model, empty, flow, **once)[0]
    ratio = "downscale_ratio_spacial"
    said["latents"] = {name: [list(one["samples"].shape[2:]), one.get(ratio)] for name, one in latents.items()}
    reports, Report = [], sampling.ProgressReport
    sampling.ProgressReport = lambda *arguments: reports.append(Report(*arguments)) or reports[-1]
    progress.args.preview_method = progress.LatentPreviewMethod.Auto
    slow = SamplingSettings(flow=FlowSettings(steps=300))
    progress.time = types.SimpleNamespace(monotonic=time.process_time)  # which a busy machine does not stretch
    began = time.process_time()
    sampling.sample(model, None, slow, **settings | {"width": 112, "height": 112, "batch_size": 1})
    said |= {"previews": reports[0]._spent, "run": time.process_time() - began}
    progress.time = time
    progress.args.preview_method, sampling.ProgressReport = progress.LatentPreviewMethod.NoPreviews, Report

    def peak(work):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
        now = highest = 0
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                now += event.nbytes()
                highest = max(highest, now)
        return highest

    sampling._picture = lambda *_: torch.zeros(1, 1, 3)  # of the run: as large as a picture, and not the run's memory
    estimates, estimate = [], drawing._sampling_memory
    drawing._sampling_memory = lambda *arguments: estimates.append(estimate(*arguments)) or estimates[-1]
    if model.patcher.load_device.type == "cpu":
        said["memory"] = [
            (peak(lambda: sampling.sample(model, None, flow, **settings | case)), estimates[-1])
            for case in (
                {"width": 112, "height": 112, "tokens_per_step": 4, "batch_size": 4},
                {"width": 112, "height": 112, "tokens_per_step": 16, "batch_size": 8},
                {"batch_size": 1, "prompt": "cat " * 200},
            )
        ]

    plain, limit, sizes = drawing.generation.generate, 1, []

    def short_of_memory(generator, tokenizer, prompts, *arguments, **options):
        sizes.append(len(prompts))
        if len(prompts) > limit:
            raise drawing.memory.OOM_EXCEPTION("out of memory")
        return plain(generator, tokenizer, prompts, *arguments, **options)

    drawing.generation.generate = short_of_memory
    parts = sampling.sample(model, None, flow, **settings)[0]["samples"]
    said |= {"sizes": sizes, "difference": (whole - parts).abs().max().item()}
    limit = 0
    try:
        sampling.sample(model, None, flow, **settings)
    except RuntimeError as error:
        said["message"] = str(error)
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def in_host(models):
    """What a process with the host's modules, but no server, finds out: see IN_HOST."""
    device = [] if torch.cuda.is_available() else ["--cpu"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(IN_HOST), comfyui_path(), ROOT, models, INTERN, *device],
        capture_output=True,
        text=True,
        cwd=comfyui_path(),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_pack_adds_little_to_the_start(host, in_host):
    """The log's own line is of wall-clock time, which a busy machine stretches; and a slow one is slow with both."""
    assert re.search(r"([\d.]+) seconds: .*ComfyUI-VGT$", host.log(), re.MULTILINE)
    assert in_host["seconds"] < 0.1 * in_host["of_host"]


def test_import_brings_no_other_package(in_host):
    """Beside the host's own modules the pack imports parts of itself and of the standard library; no transformers."""
    assert {name.partition(".")[0] for name in in_host["new"]} - set(sys.stdlib_module_names) == {"pack"}
    assert not [name for name in in_host["new"] if name.startswith("transformers")]


def test_no_package_is_required():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert not [line for line in lines if line.strip() and not line.startswith("#")]


def test_fp8_weights_are_stored_in_fp8(in_host):
    """But the flow head's, which each flow step would cast again."""
    assert in_host["stored"] == ["torch.float8_e4m3fn"]
    assert in_host["head"] == ["torch.bfloat16"]
    assert in_host["computed"] == "torch.bfloat16"


def test_a_latent_says_its_ratio_and_an_empty_one_is_asked_for_it(in_host):
    """Tokens (h, w) and pixels of a token; only newer hosts read the latter."""
    ratio = 28 if is_newer() else None
    assert in_host["latents"] == {
        "drawn": [[3, 2], ratio],
        "encoded": [[2, 3], ratio],
        "of 8": [[1, 2], ratio],
        "of 16": [[2, 4], ratio],
        "says nothing": [[4, 7], ratio],
    }


def test_out_of_memory_splits_the_batch(in_host):
    """The model raised the host's out-of-memory error for more than one image: the same latents came, one by one."""
    assert in_host["sizes"][:5] == [3, 1, 2, 1, 1]
    assert in_host["difference"] < 1e-4


def test_out_of_memory_for_one_image_is_one_message(in_host):
    assert in_host["message"].startswith("There is not enough memory to draw one image of this size;")


def test_previews_cost_little(in_host):
    """Under 5 % of a run, of one long enough for the first preview; this run is short, so that one is forgiven."""
    assert 0 < in_host["previews"] < 0.04 * in_host["run"] + 0.3
    print(f"previews: {in_host['previews']:.2f} of {in_host['run']:.2f} s")


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the CPU's allocations")
def test_memory_estimate_of_the_sampler_is_honest(in_host):
    for measured, estimated in in_host["memory"]:
        print(f"{measured / 1e6:.2f} MB, estimated {estimated / 1e6:.2f} MB")
        assert 0.8 * measured < estimated < 3 * measured
