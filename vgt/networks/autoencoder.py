"""VGT-AE: images to semantic latents and back (arXiv 2511.23469)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import LATENT_CHANNELS, AutoencoderConfig
from .pixel_decoder import PixelDecoder


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
        self.token_pixels = config.token_pixels
        self.only_side = config.only_side
        self.vision_tower = config.vision.build(width, operations=operations, **factory)
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

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of `token_pixels`.
        Returns [B, h * w, semantic_width], h x w tokens row by row. Raises ValueError for any other shape.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"Pixels must have the shape [batch, 3, height, width], not {list(pixels.shape)}.")
        height, width = pixels.shape[2:]
        if not height or not width or height % self.token_pixels or width % self.token_pixels:
            raise ValueError(f"Height and width must be multiples of {self.token_pixels}, not {height} and {width}.")
        return self.vision_tower(pixels)

    def project(self, features):
        """Semantic features [B, T, semantic_width] → channels of each token [B, T, 32], not yet normalised."""
        for block in self.down_blocks:
            features = block(features)
        return self.down_mlp(features)

    def encode(self, pixels):
        """Latent of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of `token_pixels`; where the vision tower takes but one size,
            images of another are resized to it.
        Returns [B, 32, h, w] float32, each token's channels with mean 0 and variance 1. Raises ValueError for pixels of
        any other shape.
        """
        if self.only_side and pixels.ndim == 4 and pixels.shape[2:] != (self.only_side,) * 2:
            size = (self.only_side,) * 2
            pixels = F.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True).to(pixels.dtype)
        latent = channel_norm(self.project(self.semantic_features(pixels)), -1)
        rows = pixels.shape[2] // self.token_pixels
        return rearrange(latent, "b (rows columns) c -> b c rows columns", rows=rows).contiguous()

    def decode(self, latent):
        """Pixels of a latent.

        latent: [B, 32, h, w] as from `encode`.
        Returns [B, 3, H, W], about [-1, 1], not clamped. Raises ValueError for a latent of any other shape.

        Where the encoder took another number of pixels for a token than the decoder makes, a bilinear resize makes up.
        """
        if latent.ndim != 4 or latent.shape[1] != LATENT_CHANNELS or not latent.shape[2] or not latent.shape[3]:
            raise ValueError(
                f"A latent must have the shape [batch, {LATENT_CHANNELS}, height, width], not {list(latent.shape)}."
            )
        pixels = self.pixel_decoder(latent)
        size = [self.token_pixels * side for side in latent.shape[2:]]
        if size == list(pixels.shape[2:]):
            return pixels
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
