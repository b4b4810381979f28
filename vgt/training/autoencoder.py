"""Trains the tokenizer, in two stages (arXiv 2511.23469): the vision tower learns to keep what rebuilds a picture.

Stage 1: pixels, perceptual distance, an adversary from some step on, and distillation: the semantic features stay
close to those of the frozen tower. Stage 2: the latent's channels are normalised, noise is put on it, and distillation
counts for less. The stages differ in their configuration only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..networks.autoencoder import Autoencoder, channel_norm
from .build import seeded
from .reconstruction_loss import Discriminator, VGGDistance, adversarial_losses, edge_distance
from .settings import Settings
from .sheet import save_sheet
from .trainer import Stage


@dataclass(frozen=True)
class Objective:
    """What a stage minimises: the weights of the losses, and what else tells the two stages apart."""

    channel_norm: bool = True
    noise: float = 0.0
    """Largest α: the latent becomes latent + α·ε with α ~ U[0, noise] for each picture."""
    l2: float = 1.0
    l1: float = 0.0
    perceptual: float = 1.1
    perceptual_weights: str | None = None
    """torchvision's VGG16 state dict; without it `edge_distance` stands in."""
    adversarial: float = 0.1
    adversarial_from: int = 10_000
    """The step from which the adversary takes part."""
    discriminator_rate: float = 1.0
    """The discriminator's learning rate, as a multiple of the autoencoder's."""
    distillation: float = 1.0
    distillation_share: float = 1.0
    """Share of each batch that the frozen tower looks at too."""
    encoder_rate: float = 0.5
    """The vision tower's learning rate, as a multiple of the rest's."""
    decoder_only: bool = False
    """Leave everything but the pixel decoder as it is: latents stay what they are, and generators fit them still."""


def latent_of(autoencoder: Autoencoder, pixels: Tensor, normalised: bool) -> tuple[Tensor, Tensor]:
    """Encode for training: pixels [B, 3, H, W] in [0, 1] → (semantic features [B, T, D], latent [B, 32, h, w]).

    normalised: whether the channels of each token are brought to mean 0 and variance 1.
    """
    features = autoencoder.semantic_features(pixels)
    latent = autoencoder.project(features)
    if normalised:
        latent = channel_norm(latent, -1)
    rows = pixels.shape[2] // autoencoder.token_pixels
    return features, rearrange(latent, "b (rows columns) c -> b c rows columns", rows=rows).contiguous()


class AutoencoderStage(Stage):
    """Trains either stage. `teacher` is the frozen tower whose features are to be kept; distillation needs it."""

    def __init__(self, autoencoder, objective: Objective, dataset, held_out, settings: Settings, teacher=None):
        super().__init__()
        self.trained = autoencoder
        self.objective = objective
        self.dataset, self.held_out, self.settings = dataset, held_out, settings
        if objective.decoder_only:
            autoencoder.requires_grad_(False)
            autoencoder.pixel_decoder.requires_grad_(True)
        self.teacher = None
        if objective.distillation:
            self.teacher = teacher.eval().requires_grad_(False)
        self.perceptual = None
        if objective.perceptual and objective.perceptual_weights:
            self.perceptual = VGGDistance(Path(objective.perceptual_weights))
        with seeded(settings.seed):
            self.auxiliary: nn.Module | None = Discriminator() if objective.adversarial else None
        self.adversary_at_work = False

    def groups(self):
        tower = list(self.trained.vision_tower.parameters())
        known = {id(parameter) for parameter in tower}
        rest = [parameter for parameter in self.trained.parameters() if id(parameter) not in known]
        groups = [(rest, 1.0), (tower, self.objective.encoder_rate)]
        if self.auxiliary is not None:
            groups.append((list(self.auxiliary.parameters()), self.objective.discriminator_rate))
        trained = [([p for p in parameters if p.requires_grad], scale) for parameters, scale in groups]
        return [{"params": parameters, "scale": scale} for parameters, scale in trained if parameters]

    def worth_compiling(self):
        return [self.trained.pixel_decoder, self.trained.vision_tower]

    def begin_step(self, step):
        self.adversary_at_work = self.auxiliary is not None and step >= self.objective.adversarial_from

    def forward(self, batch, rng):
        objective = self.objective
        pixels = batch[0].to(next(self.trained.parameters()).device)
        features, latent = latent_of(self.trained, pixels, objective.channel_norm)
        if objective.noise:
            strength = torch.rand(len(latent), 1, 1, 1, generator=rng) * objective.noise
            latent = latent + (strength * torch.randn(latent.shape, generator=rng)).to(latent)
        rebuilt = (self.trained.decode(latent).float() + 1) / 2
        losses = {"l2": F.mse_loss(rebuilt, pixels)}
        if objective.l1:
            losses["l1"] = F.l1_loss(rebuilt, pixels)
        if objective.perceptual:
            losses["perceptual"] = (self.perceptual or edge_distance)(rebuilt, pixels)
        if self.teacher is not None:
            some = max(1, round(objective.distillation_share * len(pixels)))
            with torch.no_grad():
                wanted = self.teacher(pixels[:some])
            losses["distillation"] = F.mse_loss(features[:some].float(), wanted.float())
        loss = sum(getattr(objective, name) * value for name, value in losses.items())
        if self.adversary_at_work:
            losses["adversarial"], losses["discriminator"] = adversarial_losses(self.auxiliary, pixels, rebuilt)
            loss = loss + objective.adversarial * losses["adversarial"] + losses["discriminator"]
        return loss, losses

    def review(self, averaged, folder: Path, step: int) -> dict[str, float]:
        device = next(averaged.parameters()).device
        total, count = 0.0, 0
        for start in range(0, min(len(self.held_out), 128), 32):
            chosen = range(start, min(start + 32, len(self.held_out)))
            pixels = torch.stack([self.held_out[index][0] for index in chosen]).to(device)
            _, latent = latent_of(averaged, pixels, self.objective.channel_norm)
            rebuilt = ((averaged.decode(latent) + 1) / 2).clamp(0, 1)
            errors = (rebuilt - pixels).square().flatten(1).mean(1)
            total, count = total + float((-10 * errors.log10()).sum()), count + len(pixels)
            if start == 0:
                save_sheet(torch.cat((pixels[:8], rebuilt[:8])), folder / f"sheet-{step:06}.png", columns=8)
        return {"psnr": total / count}
