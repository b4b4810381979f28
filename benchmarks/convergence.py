"""Measures whether a generator learns faster on a tokenizer made of a VLM: the claim of arXiv 2511.23469, small.

`python -m benchmarks.convergence drawings FOLDER --processes 2` works in the folder that `train drawings` filled (or
`tiny`, that of `train tiny`): it trains a plain autoencoder (the same projection and pixel decoder behind a
convolutional encoder, no VLM, no distillation) until it rebuilds held-out scenes as well as the recipe's tokenizer,
then the same small generators, one a seed, on the latents of both, and scores them as they learn. What is done is
skipped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgt.config import FlowHeadConfig, GeneratorConfig, ModelConfig
from vgt.evaluation import drawn_scenes, scenes, sweep
from vgt.families import family
from vgt.files.reading import read_checkpoint
from vgt.model import Model, build_autoencoder
from vgt.networks.autoencoder import Autoencoder
from vgt.networks.pixel_decoder import ResBlock
from vgt.prompt import PromptTokenizer
from vgt.sampling import SamplingSettings
from vgt.scenes.recogniser import Recogniser
from vgt.training.autoencoder import AutoencoderStage
from vgt.training.autoencoder import Objective as TokenizerObjective
from vgt.training.base_model import load_base
from vgt.training.build import new_autoencoder, new_generator, seeded
from vgt.training.command import read_config
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
TOKENIZER = Settings(
    12_000, 16, 1e-3, warmup=50, final_rate=1.0, weight_decay=1e-4, ema=0.998, seed=3, dtype="bfloat16", threads=1,
    save_every=250, sheet_every=250,
)  # fmt: skip
"""Its rate does not fall, so that it may stop anywhere."""


@dataclass(frozen=True)
class World:
    """What differs between the recipes: how much is learnt, and how the pictures are scored."""

    pictures: int
    prompts: int
    generator: Settings
    scored: Callable[[Path], Callable]
    """Of the folder with the drawings: a function of (model, prompts, settings) that gives the score."""


def _shapes(folder: Path) -> Callable:
    return lambda model, count, settings: scenes.score(model, count, settings, split="train")


def _drawings(folder: Path) -> Callable:
    recogniser = Recogniser(open_data({"kind": "drawings", "folder": folder, "size": 224}, captions=True).drawings)
    return lambda model, count, settings: drawn_scenes.score(
        model, recogniser.drawings, count, settings, split="train", recogniser=recogniser
    )


_GENERATOR = Settings(
    1200, 64, 2e-3, warmup=50, weight_decay=0.02, ema=0.99, sheet_every=100, dtype="bfloat16", threads=1, compile=True,
    muon=True,
)  # fmt: skip
WORLDS = {
    "tiny": World(40_000, 120, _GENERATOR, _shapes),
    "drawings": World(40_000, 120, replace(_GENERATOR, steps=2400, sheet_every=300), _drawings),
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


def converge(label: str, autoencoder, config, base, data: dict, world: World, score, folder: Path, seed: int) -> None:
    """Train a generator on a tokenizer's latents; folder/STEP.json holds its score at every `sheet_every` steps.

    The latents lie beside the folder, for all seeds.
    """
    settings, size = replace(world.generator, seed=seed), data["size"]
    sizes = GeneratorConfig(base.language, FlowHeadConfig(256, 3), size // config.token_pixels)
    config = ModelConfig(base.family, config, sizes, base.pad_token)
    drawn = SamplingSettings(size, size, cfg=3.0, decoding="training-consistent").filled()

    def review(averaged, tokenizer, folder: Path, step: int) -> dict[str, float]:
        model = Model(config, autoencoder, averaged, tokenizer, torch.device("cpu"), torch.float32)
        result = score(model, world.prompts, drawn)
        result = {**result, "label": f"{label}, seed {seed}", "training_step": step}
        sweep.write(result, folder / f"{step:05}.json")
        return {"score": result["score"]}

    latents = cached_latents(
        folder.parent / f"latents {label}",
        open_data(data, captions=True),
        autoencoder,
        data,
        world.pictures,
        "cpu",
        features=False,
    )
    generator = new_generator(sizes, base.family, settings.seed, base.token_pixels)
    generator.language_model.load_state_dict(base.language_state)
    prompts = PromptTokenizer(base.tokenizer_json, base.pad_token, family(base.family).template_for(base.language))
    stage = GeneratorStage(generator, prompts, Objective(), latents, settings, review)
    train(stage, settings, folder, {"convergence": label})


def compare(recipe: str, folder: Path, seeds: int) -> None:
    """Do all of it, in this process and the others of its group."""
    torch.set_num_threads(1)
    world, out = WORLDS[recipe], folder / "convergence"
    out.mkdir(exist_ok=True)
    config, later = (read_config(CONFIGS / f"{recipe}-{part}.toml") for part in ("autoencoder-1", "generator-1"))
    tables = config["data"], config["held_out"], later["data"]
    later["data"].pop("count")
    for table in tables:
        if "folder" in table:
            table["folder"] = str(folder / table["folder"])
    data, held_out = (open_data(table, captions=False) for table in tables[:2])
    checkpoint = read_checkpoint(folder / f"{recipe}-autoencoder-3/autoencoder.safetensors")
    base = load_base(folder / f"{recipe}-captioner/base", layers=LAYERS)
    tokenizer, sizes = build_autoencoder(checkpoint, dtype=torch.float32), checkpoint.config.autoencoder
    judge = AutoencoderStage(
        tokenizer, TokenizerObjective(adversarial=0.0, distillation=0.0), data, held_out, TOKENIZER
    )
    with torch.no_grad():
        wanted = judge.review(tokenizer, out, 0)["psnr"] - WITHIN
    plain = plain_autoencoder(sizes, data, held_out, wanted, out / "plain autoencoder", TOKENIZER)
    score = world.scored(folder / "drawings")
    for seed in range(5, 5 + seeds):
        for label, autoencoder in (("VGT-AE", tokenizer), ("plain autoencoder", plain)):
            place = out / f"{label} {seed}"
            converge(label, autoencoder, sizes, base, later["data"], world, score, place, seed)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("recipe", choices=WORLDS)
    parser.add_argument("folder", type=Path, help="the folder of `train tiny` or `train drawings`")
    parser.add_argument("--processes", type=int, default=1, help="how many train together")
    parser.add_argument("--seeds", type=int, default=2, help="generators on each tokenizer")
    options = parser.parse_args()
    raise SystemExit(
        together(options.processes, "cpu", compare, options.recipe, options.folder.absolute(), options.seeds)
    )


if __name__ == "__main__":
    main()
