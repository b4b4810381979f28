"""VGT-AE: images to semantic latents and back (arXiv 2511.23469)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from ..config import LATENT_CHANNELS, TOKEN_PIXELS, AutoencoderConfig, InternVisionConfig
from .pixel_decoder import PixelDecoder
from .vision_tower import InternVisionTower, QwenVisionTower


def channel_norm(latent, dim):
    """Each token's 32 channels to mean 0 and variance 1 (LayerNorm without affine part, eps 1e-6).

    latent: any shape with size 32 at `dim`. Returns the same shape, float32.
    """
    return F.layer_norm(latent.float().movedim(dim, -1), (LATENT_CHANNELS,), eps=1e-6).movedim(-1, dim)


class ResidualMLP(nn.Module):
    """x + MLP(LayerNorm(x)), width kept."""

    def __init__(self, width, *, operations, **factory):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.LayerNorm(width, eps=1e-6, **factory),
            operations.Linear(width, width, **factory),
            nn.GELU(),
            operations.Linear(width, width, **factory),
        )

    def forward(self, x):
        return x + self.mlp(x)


class Autoencoder(nn.Module):
    """VGT-AE: vision tower, projection to 32 channels, pixel decoder.

    Computes in the dtype of what it is given; outside a host that casts weights, that must be the weights' dtype.
    Gradients flow; callers who need none say `torch.no_grad()` or `torch.inference_mode()`.
    """

    def __init__(self, config: AutoencoderConfig, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        width = config.semantic_width
        tower = InternVisionTower if isinstance(config.vision, InternVisionConfig) else QwenVisionTower
        self.vision_tower = tower(config.vision, width, operations=operations, **factory)
        self.down_blocks = nn.ModuleList(ResidualMLP(width, operations=operations, **factory) for _ in range(3))
        self.down_mlp = nn.Sequential(
            operations.LayerNorm(width, **factory),
            operations.Linear(width, LATENT_CHANNELS, **factory),
            nn.GELU(),
            operations.Linear(LATENT_CHANNELS, LATENT_CHANNELS, **factory),
        )
        self.pixel_decoder = PixelDecoder(config.decoder, operations=operations, **factory)

    def semantic_features(self, pixels):
        """The vision tower's output, in the space of the language model it comes from.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of 28.
        Returns [B, H/28 * W/28, semantic_width], tokens row by row. Raises ValueError for any other shape.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"Pixels must have the shape [batch, 3, height, width], not {list(pixels.shape)}.")
        height, width = pixels.shape[2:]
        if not height or not width or height % TOKEN_PIXELS or width % TOKEN_PIXELS:
            raise ValueError(f"Height and width must be multiples of {TOKEN_PIXELS}, not {height} and {width}.")
        return self.vision_tower(pixels)

    def project(self, features):
        """Semantic features [B, T, semantic_width] → channels of each token [B, T, 32], not yet normalised."""
        for block in self.down_blocks:
            features = block(features)
        return self.down_mlp(features)

    def encode(self, pixels):
        """Latent of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of 28.
        Returns [B, 32, H/28, W/28] float32, each token's channels with mean 0 and variance 1. Raises ValueError for
        pixels of any other shape.
        """
        latent = channel_norm(self.project(self.semantic_features(pixels)), -1).transpose(1, 2)
        return latent.unflatten(2, (pixels.shape[2] // TOKEN_PIXELS, -1)).contiguous()

    def decode(self, latent):
        """Pixels of a latent.

        latent: [B, 32, h, w] as from `encode`.
        Returns [B, 3, 28h, 28w], about [-1, 1], not clamped. Raises ValueError for a latent of any other shape.

        The decoder makes 32 pixels of a token, the encoder took 28; a bilinear resize makes up for it.
        """
        if latent.ndim != 4 or latent.shape[1] != LATENT_CHANNELS or not latent.shape[2] or not latent.shape[3]:
            raise ValueError(
                f"A latent must have the shape [batch, {LATENT_CHANNELS}, height, width], not {list(latent.shape)}."
            )
        size = [TOKEN_PIXELS * side for side in latent.shape[2:]]
        return F.interpolate(self.pixel_decoder(latent), size=size, mode="bilinear", align_corners=False)
