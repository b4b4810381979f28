"""Times the cases. Each case yields rows: what, seconds of each contender, the floor in bytes where there is one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import vgt
from vgt.config import AutoencoderConfig, FlowHeadConfig, GeneratorConfig, LanguageModelConfig
from vgt.families import family
from vgt.networks.autoencoder import Autoencoder
from vgt.networks.distilled_head import DistilledHead
from vgt.networks.flow_head import FlowHead
from vgt.networks.linear import Layers
from vgt.run.flow import FlowSampler, FlowSettings
from vgt.run.generation import Generator, draw_noise, generate
from vgt.sampling import PRESETS, SamplingSettings

from .baseline import Baseline, Head
from .timing import finish, in_turn, peak_memory

BUNDLED = Path(__file__).parent.parent / "models" / "vgt-drawings.safetensors"
NAME = "VGT-Drawings"
"""What rows call the bundled model."""

QWEN_VISION = AutoencoderConfig(family("qwen2_5_vl").vision_config(), semantic_width=2048)
INTERN_VISION = AutoencoderConfig(family("internvl3").vision_config(), semantic_width=896)
INTERNVL3_1_6B = LanguageModelConfig(1536, 28, 12, 2, 8960, 151674)
QWEN2_5_VL_2B = LanguageModelConfig(2048, 24, 16, 2, 11008, 151936)
"""The published file's layer count is not stated; 24 of the base model's 36 make 2B with embeddings."""

STEPS, CFG = 30, 4.5


@dataclass
class Row:
    """One line of the results."""

    case: str
    seconds: dict[str, float]
    """Median of each contender: "ours", with CUDA graphs "eager" too, and "baseline" where there is one."""
    floor: int | None = None
    """Bytes that must move."""
    memory: int | None = None
    """Bytes at the peak, weights among them."""
    weights: int | None = None
    """Bytes of those."""
    note: str = ""


@torch.no_grad()
def head(device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Time the flow head at its published size, one token with guidance, 30 steps."""
    ours = random_weights(FlowHead(FlowHeadConfig(), 1536, operations=Layers, device="meta", dtype=dtype), device)
    plain = Head(ours)
    sampler = FlowSampler(ours, FlowSettings(STEPS), device, dtype)
    for tokens in (1, 4, 16):
        condition = torch.randn(2 * tokens, 1536, device=device, dtype=dtype)
        noise = torch.randn(tokens, STEPS, 32, device=device)
        seconds = in_turn(
            device,
            runs,
            baseline=lambda c=condition, n=noise: plain.sample(c, n, CFG, STEPS),
            ours=lambda c=condition, n=noise: sampler(c, n, CFG),
        )
        yield Row(f"flow head, {tokens} tokens", seconds, head_bytes(ours))


def bundled(device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Time the bundled model, prompt to latent."""
    model = vgt.load(BUNDLED, device, dtype)
    side = model.config.token_pixels * min(model.config.generator.grid)
    for tokens_per_step in (1, 4, 16):
        yield generation(NAME, model.generator, model.tokenizer, side, 1, tokens_per_step, runs)


@torch.no_grad()
def fewer(device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Fewer evaluations a token: the flow head at its published size, and the bundled model from prompt to latent.

    It has guidance for the first half of the picture, or to the end where a preset or the row's name says so. The
    distilled heads have random weights, which their time does not depend on.
    """
    own = random_weights(FlowHead(FlowHeadConfig(), 1536, operations=Layers, device="meta", dtype=dtype), device)
    jumping = random_weights(
        DistilledHead(FlowHeadConfig(), 1536, operations=Layers, device="meta", dtype=dtype), device
    )
    condition, noise = torch.randn(2, 1536, device=device, dtype=dtype), torch.randn(1, STEPS, 32, device=device)
    plain = Head(own)
    contenders = {"baseline": lambda: plain.sample(condition, noise, CFG, STEPS)}
    cfg = torch.tensor(CFG, device=device)
    for solver, counts in (("euler_maruyama", (STEPS,)), ("euler", (6,)), ("distilled", (2, 1))):
        for count in counts:
            settings = FlowSettings(count, solver=solver)
            sampler = FlowSampler(jumping if solver == "distilled" else own, settings, device, dtype)
            contenders[f"{solver}, {count} evaluations"] = lambda sampler=sampler: sampler(condition, noise, cfg)
    yield from against_baseline("flow head, 1 token", in_turn(device, runs, **contenders))
    del own, jumping, plain, contenders

    model = vgt.load(BUNDLED, device, dtype)
    generator, width = model.generator, model.config.generator.language.width
    head = DistilledHead(model.config.generator.flow_head, width, device="meta", dtype=dtype)
    generator.distilled_head = random_weights(head, device)
    plain = Baseline(generator, model.tokenizer)
    side = model.config.token_pixels * min(model.config.generator.grid)
    prompt = "a red circle above a blue square"
    ways = {f"preset {name}": vars(PRESETS[name]) for name in PRESETS}
    least = FlowSettings(6, solver="euler", final_steps=2)
    ways["euler, 6 falling to 2"] = {"flow": least, "cfg_end": 0.5}
    ways["distilled, 2"] = {"flow": FlowSettings(2, solver="distilled"), "cfg_end": 0.5}
    ways["distilled, 1, guidance to the end"] = {"flow": FlowSettings(1, solver="distilled"), "cfg_end": 1.0}
    noise = draw_noise(0, [0], (side // model.config.token_pixels) ** 2, STEPS)
    shape = {"height": side, "width": side, "seed": 0, "cfg": CFG}
    for tokens in (1, 4):
        settings = shape | {"tokens_per_step": tokens}
        contenders = {"baseline": lambda s=settings: plain.generate([prompt], **s, steps=STEPS, noise=noise)}
        for name, way in ways.items():
            chosen = {**{key: value for key, value in way.items() if value is not None}, **settings}
            contenders[name] = lambda chosen=chosen: model.generate(prompt, **chosen)
        yield from against_baseline(f"{NAME}, {side}x{side}, {tokens} a step", in_turn(device, runs, **contenders))
    for batch in (1, 8):
        fast = {**shape, "flow": PRESETS["fast"].flow}
        seconds = in_turn(
            device,
            runs,
            baseline=lambda n=batch, s=fast: model.generate([prompt] * n, **s, cfg_end=1.0),
            ours=lambda n=batch, s=fast: model.generate([prompt] * n, **s, cfg_end=0.5),
        )
        yield Row(f"{NAME}, batch {batch}, fast, guidance for the first half (baseline: to the end)", seconds)


def against_baseline(case: str, seconds: dict[str, float]) -> Iterator[Row]:
    """A row for each contender but the baseline."""
    for name, own in seconds.items():
        if name != "baseline":
            yield Row(f"{case}: {name}", {"baseline": seconds["baseline"], "ours": own})


def full(device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Time the published sizes with random weights, 448x448."""
    tokenizer = vgt.load(BUNDLED).tokenizer
    for name, which, language in (
        ("InternVL3-1.6B", "internvl3", INTERNVL3_1_6B),
        ("Qwen2.5-VL-2B", "qwen2_5_vl", QWEN2_5_VL_2B),
    ):
        generator = random_weights(Generator(GeneratorConfig(language), which, device="meta", dtype=dtype), device)
        for batch in (1, 4):
            for tokens_per_step in (1, 4, 16):
                yield generation(name, generator, tokenizer, 448, batch, tokens_per_step, runs)


def generation(name, generator, tokenizer, side, batch, tokens_per_step, runs) -> Row:
    device = generator.image_in_projector.weight.device
    prompts = ["a red circle above a blue square"] * batch
    noise = draw_noise(0, range(batch), (side // generator.token_pixels) ** 2, STEPS)
    settings = {"height": side, "width": side, "seed": 0, "cfg": CFG, "tokens_per_step": tokens_per_step}

    def ours(graphs=True):
        chosen = SamplingSettings(**settings, flow=FlowSettings(STEPS))
        return generate(generator, tokenizer, prompts, settings=chosen, noise=noise, graphs=graphs)

    generator.graphs.clear()  # those of other rows
    memory = peak_memory(device, ours)
    if generator.graphs.refused:
        raise RuntimeError("There are no CUDA graphs to time; the log says why.")
    plain = Baseline(generator, tokenizer)  # which copies weights
    contenders = {"baseline": lambda: plain.generate(prompts, **settings, steps=STEPS, noise=noise), "ours": ours}
    if device.type == "cuda":
        contenders["eager"] = lambda: ours(graphs=False)
    seconds = in_turn(device, runs, **contenders)
    steps = max(1, (side // generator.token_pixels) ** 2 // tokens_per_step)
    language = sum(p.numel() * p.element_size() for p in generator.language_model.layers.parameters())
    floor = steps * (language + head_bytes(generator.flow_head))
    case = f"{name}, {side}x{side}, batch {batch}, {tokens_per_step} a step"
    return Row(case, seconds, floor, memory, sum(p.numel() * p.element_size() for p in generator.parameters()))


def length(device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """See whether a token costs the same late in a picture as early: the bundled model with queries for 448x448.

    The last 16 tokens of 256, the others being known, in turn with a picture of 16: a drifting machine favours neither.
    """
    model = vgt.load(BUNDLED, device, dtype)
    config = replace(model.config.generator, query_grid=16)
    generator = random_weights(Generator(config, model.config.family, device="meta", dtype=dtype), device)
    rest = torch.zeros(16, 16, dtype=torch.bool)
    rest[-1] = True
    side = {"early": SamplingSettings(112, 112, cfg=CFG), "late": SamplingSettings(cfg=CFG)}
    late = {"latent": torch.zeros(1, 32, 16, 16), "mask": rest}
    seconds = {"early": [], "late": []}
    for round_ in range(max(runs, 20) + 1):
        for name, given in (("early", {}), ("late", late)):
            ends = []

            def progress(_, ends=ends):
                finish(device)
                ends.append(time.perf_counter())

            generate(generator, model.tokenizer, "a red circle", settings=side[name], **given, progress=progress)
            if round_:
                seconds[name].append((ends[-1] - ends[0]) / (len(ends) - 1))
    ratio = statistics.median(seconds["late"]) / statistics.median(seconds["early"])
    yield Row("", {}, note=f"The last 16 tokens of 256 take {ratio:.2f} times as long as those of a picture of 16.")


def precision(device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Measure how far bfloat16 is from float32 over a picture, beside the baseline's own distance."""
    ours, theirs = bfloat16_errors(device, range(2))
    yield Row("", {}, note=f"Error of bfloat16 over a picture of {NAME}: ours {ours:.4f}, the baseline's {theirs:.4f}.")


def bfloat16_errors(device: torch.device, seeds) -> tuple[float, float]:
    """Measure the RMS distance of bfloat16 latents from float32's, median over some pictures: ours, the baseline's.

    The median, because now and then a rounded token sends the rest of a picture elsewhere, whoever computes it.
    """
    exact, rounded = (vgt.load(BUNDLED, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    plain = Baseline(rounded.generator, rounded.tokenizer)
    side = 4 * exact.config.token_pixels  # small: many processors emulate bfloat16
    prompts = ["two red stars"] * 16
    distances = {"ours": [], "baseline": []}
    for seed in seeds:
        noise = draw_noise(seed, range(len(prompts)), (side // exact.config.token_pixels) ** 2, STEPS)
        settings = {"height": side, "width": side, "seed": seed, "cfg": CFG, "tokens_per_step": 1, "noise": noise}
        published = {"flow": FlowSettings(STEPS), "cfg_end": 1.0}
        wanted = exact.generate(prompts, **settings, **published)
        drawn = {
            "ours": rounded.generate(prompts, **settings, **published),
            "baseline": plain.generate(prompts, **settings, steps=STEPS),
        }
        for name, latent in drawn.items():
            distances[name].append((latent - wanted).square().mean((1, 2, 3)).sqrt())
    return tuple(float(torch.cat(found).median()) for found in distances.values())


@torch.no_grad()
def autoencoder(device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Time encode and decode at 448x448; decode beside diffusers' decoder with the same weights."""
    from diffusers import AutoencoderDC

    pixels = torch.rand(1, 3, 448, 448, device=device, dtype=dtype)
    latent = torch.randn(1, 32, 16, 16, device=device, dtype=dtype)
    for name, config in (("InternVL3", INTERN_VISION), ("Qwen2.5-VL", QWEN_VISION)):
        model = random_weights(Autoencoder(config, device="meta", dtype=dtype), device)
        yield Row(f"encode, {name}, 448x448", in_turn(device, runs, ours=lambda m=model: m.encode(pixels)))
    with torch.device("meta"):
        theirs = AutoencoderDC(
            latent_channels=32,
            attention_head_dim=32,
            encoder_block_types="ResBlock",
            encoder_block_out_channels=(32,) * 6,
            encoder_layers_per_block=(1,) * 6,
            encoder_qkv_multiscales=((),) * 6,
            decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            decoder_block_out_channels=config.decoder.widths,
            decoder_layers_per_block=config.decoder.blocks,
            decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        ).decoder
    theirs.load_state_dict(model.pixel_decoder.state_dict(), assign=True)
    seconds = in_turn(device, runs, baseline=lambda: theirs(latent), ours=lambda: model.pixel_decoder(latent))
    yield Row("decode, 448x448 (baseline: diffusers)", seconds)


def random_weights(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Give a module on the meta device small random weights (norm scales near 1), the same each time."""
    module = module.to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1 and name.endswith("weight"):
            tensor.fill_(1)
        else:
            tensor.normal_(0, 0.02, generator=generator)
    return module


def head_bytes(head: FlowHead) -> int:
    """Count the bytes that a token's flow must read: the modulation matrix once, the rest at every step."""
    sizes = {name: p.numel() * p.element_size() for name, p in head.named_parameters()}
    once = sum(size for name, size in sizes.items() if name.startswith(("modulation", "cond_embed", "time_embed")))
    return once + STEPS * (sum(sizes.values()) - once)


CASES = {
    "head": head,
    "bundled": bundled,
    "fewer": fewer,
    "length": length,
    "precision": precision,
    "autoencoder": autoencoder,
    "full": full,
}
