"""Measures whether a generator learns faster on a tokenizer made of a VLM: the claim of arXiv 2511.23469, small.

`torchrun --nproc-per-node 2 -m benchmarks.convergence FOLDER` works in the folder that `train tiny` filled: it
trains a plain autoencoder (the same projection and pixel decoder behind a convolutional encoder, no VLM, no
distillation), then the same small generator on its latents and on those of VGT-Tiny's tokenizer, and scores both as
they learn. What is done is skipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgt.config import FlowHeadConfig, GeneratorConfig, ModelConfig
from vgt.evaluation import scenes, sweep
from vgt.families import family
from vgt.files.reading import read_checkpoint
from vgt.model import Model, build_autoencoder
from vgt.networks.autoencoder import Autoencoder
from vgt.networks.pixel_decoder import ResBlock
from vgt.prompt import PromptTokenizer
from vgt.sampling import SamplingSettings
from vgt.scenes.world import ScenesDataset
from vgt.training.autoencoder import AutoencoderStage
from vgt.training.autoencoder import Objective as TokenizerObjective
from vgt.training.base_model import load_base
from vgt.training.build import new_autoencoder, new_generator, seeded
from vgt.training.generator import GeneratorStage, Objective
from vgt.training.latents import cached_latents
from vgt.training.settings import Settings
from vgt.training.trainer import start_processes, train

SIZE = 112
WIDTHS = (32, 64, 128, 192)
LAYERS = 3
"""Of the language model: a small generator shows which one is ahead in minutes."""
PICTURES = 40_000
PROMPTS = 120
# As VGT-Tiny's tokenizer: in float32 and by AdamW. In bfloat16 the compiled pixel decoder's loss is not finite.
TOKENIZER = Settings(1500, 16, 1e-3, warmup=50, weight_decay=1e-4, seed=3, save_every=500, compile=True)
GENERATOR = Settings(
    1200, 64, 2e-3, warmup=50, weight_decay=0.02, ema=0.99, seed=5, sheet_every=100, dtype="bfloat16", compile=True,
    muon=True,
)  # fmt: skip


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


def plain_autoencoder(config, folder: Path, settings: Settings) -> Autoencoder:
    """Train an autoencoder with everything of VGT-AE but the VLM's vision tower."""
    plain = new_autoencoder(config, settings.seed)
    with seeded(settings.seed):
        plain.vision_tower = ConvolutionalTower(config.semantic_width, config.token_pixels)
    objective = TokenizerObjective(
        noise=0.1, l2=20.0, l1=0.5, perceptual=0.5, adversarial=0.0, distillation=0.0, encoder_rate=1.0
    )
    data, held_out = (ScenesDataset(SIZE, seed, split) for seed, split in ((3, "train"), (2, "test")))
    stage = AutoencoderStage(plain, objective, data, held_out, settings)
    return train(stage, settings, folder, {"convergence": "plain autoencoder"}).eval()


def converge(label: str, autoencoder, config, base, folder: Path, settings: Settings) -> None:
    """Train a generator on a tokenizer's latents; folder/STEP.json holds its score at every `sheet_every` steps."""
    sizes = GeneratorConfig(base.language, FlowHeadConfig(256, 3), SIZE // config.token_pixels)
    config = ModelConfig(base.family, config, sizes, base.pad_token)
    drawn = SamplingSettings(SIZE, SIZE, cfg=3.0, decoding="training-consistent").filled()

    def review(averaged, tokenizer, folder: Path, step: int) -> dict[str, float]:
        model = Model(config, autoencoder, averaged, tokenizer, torch.device("cpu"), torch.float32)
        result = scenes.score(model, PROMPTS, drawn, split="train")
        sweep.write({**result, "label": label, "training_step": step}, folder / f"{step:05}.json")
        return {"score": result["score"]}

    data = ScenesDataset(SIZE, 5)
    about = {"kind": "scenes", "size": SIZE, "seed": 5}
    latents = cached_latents(folder / "latents", data, autoencoder, about, PICTURES, "cpu", features=False)
    generator = new_generator(sizes, base.family, settings.seed)
    generator.language_model.load_state_dict(base.language_state)
    prompts = PromptTokenizer(base.tokenizer_json, base.pad_token, family(base.family).template_for(base.language))
    stage = GeneratorStage(generator, prompts, Objective(), latents, settings, review)
    train(stage, settings, folder, {"convergence": label})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of `train tiny`")
    folder = parser.parse_args().folder
    start_processes("cpu")
    torch.set_num_threads(1)
    checkpoint = read_checkpoint(folder / "tiny-autoencoder-3/autoencoder.safetensors")
    base = load_base(folder / "tiny-captioner/base", layers=LAYERS)
    tokenizer = build_autoencoder(checkpoint, dtype=torch.float32)
    config = checkpoint.config.autoencoder
    plain = plain_autoencoder(config, folder / "convergence/plain-autoencoder", TOKENIZER)
    for label, autoencoder in (("VGT-AE", tokenizer), ("plain autoencoder", plain)):
        converge(label, autoencoder, config, base, folder / "convergence" / label, GENERATOR)


if __name__ == "__main__":
    main()
