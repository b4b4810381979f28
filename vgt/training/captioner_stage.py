"""Trains a small VLM to caption, where there is no pretrained one: the stage before the paper's.

A vision tower that starts from nothing learns slowly from words alone. It is helped by a second task: a linear layer,
dropped afterwards, reads off each token's features a thumbnail of the token's square.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .build import seeded
from .captioning import Captioner, VisionLanguageModel, caption_loss, describe
from .settings import Settings
from .trainer import Stage

_THUMBNAIL = 7
"""Side in pixels of a token's thumbnail."""


class CaptionerStage(Stage):
    """Minimises the cross-entropy of captions, given the vision tower's features at the image place; and thumbnails."""

    def __init__(
        self, vlm: VisionLanguageModel, captioner: Captioner, token_pixels: int, dataset, held_out, settings: Settings,
        thumbnail_weight=0.0,
    ):  # fmt: skip
        super().__init__()
        self.trained = vlm
        self.captioner, self.token_pixels = captioner, token_pixels
        with seeded(settings.seed):
            self.auxiliary = nn.Linear(vlm.language_model.config.width, 3 * _THUMBNAIL**2)
        self.thumbnail_weight = thumbnail_weight
        self.dataset, self.held_out, self.settings = dataset, held_out, settings

    def forward(self, batch, rng):
        pixels, captions = batch
        pixels = pixels.to(next(self.parameters()).device)
        grid = tuple(side // self.token_pixels for side in pixels.shape[2:])
        features = self.trained.vision_tower(pixels)
        loss = caption_loss(self.trained.language_model, self.captioner, features, captions, grid)
        if not self.thumbnail_weight:
            return loss, {}
        thumbnails = F.avg_pool2d(pixels, self.token_pixels // _THUMBNAIL)
        wanted = F.unfold(thumbnails, _THUMBNAIL, stride=_THUMBNAIL).transpose(1, 2)
        error = F.mse_loss(self.auxiliary(features).float(), wanted)
        return loss + self.thumbnail_weight * error, {"caption": loss, "thumbnail": error}

    def review(self, averaged, folder: Path, step: int) -> dict[str, float]:
        pixels, captions = held_out_batch(self.held_out, 64)
        pixels = pixels.to(next(self.parameters()).device)
        grid = tuple(side // self.token_pixels for side in pixels.shape[2:])
        features = averaged.vision_tower(pixels)
        loss = caption_loss(averaged.language_model, self.captioner, features, captions, grid)
        said = describe(averaged.language_model, self.captioner, features, grid)
        lines = [f"{wanted}\t{answer}" for wanted, answer in zip(captions, said)]
        (folder / f"captions-{step:06}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"caption_loss": float(loss)}


def held_out_batch(dataset, count: int):
    """Takes the first `count` items of a data set as one batch."""
    items = [dataset[index] for index in range(min(count, len(dataset)))]
    return torch.stack([pixels for pixels, _ in items]), [caption for _, caption in items]
