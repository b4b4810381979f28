"""Measures whether a generator learns faster on a tokenizer made of a VLM: the claim of arXiv 2511.23469, small.

`python -m benchmarks.convergence FOLDER --processes 2` works in the folder that `train drawings` filled: it trains a
plain autoencoder (the same projection and pixel decoder behind a convolutional encoder, no VLM, no distillation) until
it rebuilds held-out scenes as well as the recipe's tokenizer after its second stage (the third leaves the latents as
they are). The same small generators, one a seed, then learn on the latents of both, and are scored as they learn: on
shapes alone, of which they draw single ones after 500 steps. What is done is skipped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
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
from vgt.sampling import PRESETS, SamplingSettings
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

WIDTHS = (64, 192)
"""Of the plain autoencoder's encoder; each halves the grid."""
LAYERS = 3
"""Of the language model: a small generator shows which one is ahead in minutes."""
WITHIN = 0.5
"""dB; so near to the tokenizer's reconstruction the plain autoencoder has to come, and stops."""
PICTURES = 12_000
PROMPTS = 120
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENIZER = {"steps": 2250, "ema": 0.995, "save_every": 125, "sheet_every": 125, "device": DEVICE}
"""The plain autoencoder's settings beside those of the recipe's second stage."""
if DEVICE == "cpu":
    TOKENIZER["batch_size"] = 8  # which take 1.4 s on two cores; the recipe's are for a GPU
GENERATOR = Settings(
    500, 32, 2e-3, warmup=50, weight_decay=0.02, ema=0.99, save_every=125, sheet_every=125, dtype="bfloat16",
    threads=1, compile=DEVICE == "cpu", muon=True, device=DEVICE,
)  # fmt: skip
DRAWN = SamplingSettings(cfg=3.0, decoding="training-consistent", tokens_per_step=4, grouping="cosine")
"""How the generators draw, with the preset `fast`."""


class ConvolutionalTower(nn.Module):
    """Stands in for the VLM's tower: pixels [B, 3, H, W] in [0, 1] → features [B, tokens, width], by convolutions."""

    def __init__(self, width: int, token_pixels: int):
        super().__init__()
        patch = token_pixels // 2 ** len(WIDTHS)
        self.stem = nn.Conv2d(3, WIDTHS[0], patch, patch)
        self.stages = nn.ModuleList()
        for before, after in zip(WIDTHS, (*WIDTHS[1:], width)):
            self.stages.append(nn.Sequential(ResBlock(before, operations=nn), nn.Conv2d(before, after, 3, 2, 1)))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels * 2 - 1)
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


def converge(label: str, autoencoder, config, base, data: dict, settings: Settings, folder: Path) -> None:
    """Train a generator on a tokenizer's latents; folder/STEP.json holds its score at every `sheet_every` steps.

    The latents of the pictures of `data` lie beside the folder, for all seeds.
    """
    size = data["size"]
    sizes = GeneratorConfig(base.language, FlowHeadConfig(256, 3), size // config.token_pixels)
    config = ModelConfig(base.family, config, sizes, base.pad_token)
    drawn = replace(DRAWN, height=size, width=size).over(PRESETS["fast"]).filled()

    def review(averaged, tokenizer, folder: Path, step: int) -> dict[str, float]:
        model = Model(config, autoencoder, averaged, tokenizer, torch.device(settings.device), torch.float32)
        result = scenes.score(model, PROMPTS, drawn, split="train", batch=BLOCK)
        result = {**result, "label": f"{label}, seed {settings.seed}", "training_step": step}
        sweep.write(result, folder / f"{step:05}.json")
        return {"score": result["score"]}

    latents = cached_latents(
        folder.parent / f"latents {label}",
        open_data(data, captions=True),
        autoencoder,
        data,
        PICTURES,
        settings.device,
        features=False,
        workers=settings.workers,
    )
    generator = new_generator(sizes, base.family, settings.seed, base.token_pixels)
    generator.language_model.load_state_dict(base.language_state)
    prompts = PromptTokenizer(base.tokenizer_json, base.pad_token, family(base.family).template_for(base.language))
    stage = GeneratorStage(generator, prompts, Objective(), latents, settings, review)
    train(stage, settings, folder, {"convergence": label})


def compare(folder: Path, seeds: int, workers: int = 0) -> None:
    """Do all of it, in this process and the others of its group."""
    torch.set_num_threads(1)
    out = folder / "convergence"
    out.mkdir(exist_ok=True)
    config = read_config(CONFIGS / "drawings-autoencoder-2.toml")
    for table in (config["data"], config["held_out"]):
        if "folder" in table:
            table["folder"] = str(folder / table["folder"])
    data, held_out = (open_data(table, captions=False) for table in (config["data"], config["held_out"]))
    settings = read_settings({"training": {**config["training"], "workers": workers, **TOKENIZER}})
    checkpoint = read_checkpoint(folder / "drawings-autoencoder-2/autoencoder.safetensors")
    base = load_base(folder / "drawings-captioner/base", layers=LAYERS)
    sizes = checkpoint.config.autoencoder
    tokenizer = build_autoencoder(checkpoint, dtype=torch.float32).to(settings.device)
    judge = AutoencoderStage(tokenizer, TokenizerObjective(adversarial=0.0, distillation=0.0), data, held_out, settings)
    with torch.no_grad():
        wanted = judge.review(tokenizer, out, 0)["psnr"] - WITHIN
    plain = plain_autoencoder(sizes, data, held_out, wanted, out / "plain autoencoder", settings)
    learnt = {**config["data"], "seed": 5, "shapes": 1.0, "free": False}
    for seed in range(5, 5 + seeds):
        for label, autoencoder in (("VGT-AE", tokenizer), ("plain autoencoder", plain)):
            settings = replace(GENERATOR, seed=seed, workers=workers)
            converge(label, autoencoder, sizes, base, learnt, settings, out / f"{label} {seed}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of `train drawings`")
    parser.add_argument("--processes", type=int, default=1, help="how many train together")
    parser.add_argument("--seeds", type=int, default=2, help="generators on each tokenizer")
    parser.add_argument("--workers", type=int, default=0, help="how many more processes draw the pictures")
    options = parser.parse_args()
    what = options.folder.absolute(), options.seeds, options.workers
    raise SystemExit(together(options.processes, DEVICE, compare, *what))


if __name__ == "__main__":
    main()
