"""Measures whether a generator learns faster on a tokenizer made of a VLM: the claim of arXiv 2511.23469, small.

`python -m benchmarks.convergence drawings FOLDER --processes 2` works in the folder that `train drawings` filled (or
`tiny`, that of `train tiny`): it trains a plain autoencoder (the same projection and pixel decoder behind a
convolutional encoder, no VLM, no distillation) until it rebuilds held-out scenes as well as the recipe's tokenizer,
then the same small generators, one a seed, on the latents of both, and scores them as they learn: on shapes, which a
small generator learns in minutes. What is done is skipped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgt.config import FlowHeadConfig, GeneratorConfig, ModelConfig
from vgt.evaluation import scenes, sweep
from vgt.evaluation.drawing import BLOCK
from vgt.families import family
from vgt.files.reading import read_checkpoint
from vgt.model import Model, build_autoencoder
from vgt.networks.autoencoder import Autoencoder
from vgt.networks.pixel_decoder import ResBlock
from vgt.prompt import PromptTokenizer
from vgt.sampling import SamplingSettings
from vgt.training.autoencoder import AutoencoderStage
from vgt.training.autoencoder import Objective as TokenizerObjective
from vgt.training.base_model import load_base
from vgt.training.build import new_autoencoder, new_generator, seeded
from vgt.training.command import read_config, read_settings
from vgt.training.data import open_data
from vgt.training.generator import GeneratorStage, Objective
from vgt.training.latents import cached_latents
from vgt.training.processes import together
from vgt.training.recipes import CONFIGS
from vgt.training.run_log import METRICS
from vgt.training.settings import Settings
from vgt.training.trainer import train

WIDTHS = (32, 64, 128, 192)
LAYERS = 3
"""Of the language model: a small generator shows which one is ahead in minutes."""
WITHIN = 0.5
"""dB; so near to the tokenizer's reconstruction the plain autoencoder has to come, and stops."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENIZER = {"steps": 12_000, "final_rate": 1.0, "ema": 0.998, "save_every": 250, "sheet_every": 250, "device": DEVICE}
"""The plain autoencoder's settings beside those of the recipe. Its rate does not fall, so that it may stop anywhere."""


@dataclass(frozen=True)
class World:
    """How much is learnt of a recipe's pictures, and how many prompts score it."""

    pictures: int
    prompts: int
    generator: Settings


_GENERATOR = Settings(
    1200, 64, 2e-3, warmup=50, weight_decay=0.02, ema=0.99, sheet_every=100, dtype="bfloat16", threads=1,
    compile=DEVICE == "cpu", muon=True, device=DEVICE,
)  # fmt: skip
WORLDS = {
    "tiny": World(40_000, 120, _GENERATOR),
    "drawings": World(40_000, 120, replace(_GENERATOR, steps=2400, sheet_every=300, save_every=300)),
}


class ConvolutionalTower(nn.Module):
    """Stands in for the VLM's tower: pixels [B, 3, H, W] in [0, 1] → features [B, tokens, width], by convolutions."""

    def __init__(self, width: int, token_pixels: int):
        super().__init__()
        self.token_pixels = token_pixels
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.stages = nn.ModuleList()
        for before, after in zip((WIDTHS[0], *WIDTHS), (*WIDTHS, width)):
            self.stages.append(nn.Sequential(ResBlock(before, operations=nn), nn.Conv2d(before, after, 3, 2, 1)))

    def forward(self, pixels: Tensor) -> Tensor:
        # The pixel decoder makes 32 pixels of a token; this is its way back.
        side = [size // self.token_pixels * 2 ** len(self.stages) for size in pixels.shape[2:]]
        x = self.stem(F.interpolate(pixels * 2 - 1, side, mode="bilinear", align_corners=False))
        for stage in self.stages:
            x = stage(x)
        return x.flatten(2).transpose(1, 2)


def plain_autoencoder(config, data, held_out, wanted: float, folder: Path, settings: Settings) -> Autoencoder:
    """Train an autoencoder with everything of VGT-AE but the VLM's vision tower, to a PSNR of `wanted` dB held out.

    It stops at the first review that is as good. Raises ValueError when none is.
    """
    plain = new_autoencoder(config, settings.seed)
    with seeded(settings.seed):
        plain.vision_tower = ConvolutionalTower(config.semantic_width, config.token_pixels)
    objective = TokenizerObjective(
        noise=0.1, l2=20.0, l1=0.5, perceptual=0.5, adversarial=0.0, distillation=0.0, encoder_rate=1.0
    )
    stage = AutoencoderStage(plain, objective, data, held_out, settings)
    for steps in range(settings.sheet_every, settings.steps + 1, settings.sheet_every):
        trained = train(stage, settings, folder, {"convergence": "plain autoencoder"}, until=steps)
        lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        found = next(line["held_out_psnr"] for line in lines if line["step"] == steps and "held_out_psnr" in line)
        if found >= wanted:
            print(f"plain autoencoder: {found:.2f} dB after {steps} steps", flush=True)
            return trained.eval()
    raise ValueError(f"The plain autoencoder rebuilds with {found:.2f} dB after {steps} steps, not {wanted:.2f}.")


def converge(label: str, autoencoder, config, base, size: int, world: World, folder: Path, seed: int) -> None:
    """Train a generator on a tokenizer's latents; folder/STEP.json holds its score at every `sheet_every` steps.

    The latents lie beside the folder, for all seeds.
    """
    settings = replace(world.generator, seed=seed)
    data = {"kind": "scenes", "size": size, "seed": 5}
    sizes = GeneratorConfig(base.language, FlowHeadConfig(256, 3), size // config.token_pixels)
    config = ModelConfig(base.family, config, sizes, base.pad_token)
    drawn = SamplingSettings(size, size, cfg=3.0, decoding="training-consistent").filled()

    def review(averaged, tokenizer, folder: Path, step: int) -> dict[str, float]:
        model = Model(config, autoencoder, averaged, tokenizer, torch.device(settings.device), torch.float32)
        result = scenes.score(model, world.prompts, drawn, split="train", batch=BLOCK)
        result = {**result, "label": f"{label}, seed {seed}", "training_step": step}
        sweep.write(result, folder / f"{step:05}.json")
        return {"score": result["score"]}

    latents = cached_latents(
        folder.parent / f"latents {label}",
        open_data(data, captions=True),
        autoencoder,
        data,
        world.pictures,
        settings.device,
        features=False,
        workers=settings.workers,
    )
    generator = new_generator(sizes, base.family, settings.seed, base.token_pixels)
    generator.language_model.load_state_dict(base.language_state)
    prompts = PromptTokenizer(base.tokenizer_json, base.pad_token, family(base.family).template_for(base.language))
    stage = GeneratorStage(generator, prompts, Objective(), latents, settings, review)
    train(stage, settings, folder, {"convergence": label})


def compare(recipe: str, folder: Path, seeds: int, workers: int = 0) -> None:
    """Do all of it, in this process and the others of its group."""
    torch.set_num_threads(1)
    world, out = WORLDS[recipe], folder / "convergence"
    world = replace(world, generator=replace(world.generator, workers=workers))
    out.mkdir(exist_ok=True)
    config = read_config(CONFIGS / f"{recipe}-autoencoder-2.toml")
    for table in (config["data"], config["held_out"]):
        if "folder" in table:
            table["folder"] = str(folder / table["folder"])
    data, held_out = (open_data(table, captions=False) for table in (config["data"], config["held_out"]))
    settings = read_settings({"training": {**config["training"], "workers": workers, **TOKENIZER}})
    checkpoint = read_checkpoint(folder / f"{recipe}-autoencoder-3/autoencoder.safetensors")
    base = load_base(folder / f"{recipe}-captioner/base", layers=LAYERS)
    sizes = checkpoint.config.autoencoder
    tokenizer = build_autoencoder(checkpoint, dtype=torch.float32).to(settings.device)
    judge = AutoencoderStage(tokenizer, TokenizerObjective(adversarial=0.0, distillation=0.0), data, held_out, settings)
    with torch.no_grad():
        wanted = judge.review(tokenizer, out, 0)["psnr"] - WITHIN
    plain = plain_autoencoder(sizes, data, held_out, wanted, out / "plain autoencoder", settings)
    for seed in range(5, 5 + seeds):
        for label, autoencoder in (("VGT-AE", tokenizer), ("plain autoencoder", plain)):
            converge(label, autoencoder, sizes, base, data.size, world, out / f"{label} {seed}", seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("recipe", choices=WORLDS)
    parser.add_argument("folder", type=Path, help="the folder of `train tiny` or `train drawings`")
    parser.add_argument("--processes", type=int, default=1, help="how many train together")
    parser.add_argument("--seeds", type=int, default=2, help="generators on each tokenizer")
    parser.add_argument("--workers", type=int, default=0, help="how many more processes draw the pictures")
    options = parser.parse_args()
    what = options.recipe, options.folder.absolute(), options.seeds, options.workers
    raise SystemExit(together(options.processes, DEVICE, compare, *what))


if __name__ == "__main__":
    main()
