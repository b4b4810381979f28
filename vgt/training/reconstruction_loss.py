"""Judges reconstructions: by pixels, a perceptual distance and an adversary (arXiv 2511.23469)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

_VGG_LAYERS = (3, 8, 15, 22, 29)
"""VGG16's last activation of each stage, as LPIPS reads them."""
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGGDistance(nn.Module):
    """Measures the distance of VGG16 features, channels normalised: LPIPS without its learned weights.

    weights: torchvision's `vgg16` state dict on disk; nothing is downloaded. Raises OSError when it cannot be read.
    """

    def __init__(self, weights: Path):
        super().__init__()
        from torchvision.models import vgg16

        network = vgg16(weights=None)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.features = network.features[: _VGG_LAYERS[-1] + 1].eval().requires_grad_(False)
        for name, values in zip(("mean", "std"), _IMAGENET):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] → their mean distance."""
        x = (torch.cat((one, other)) - self.mean) / self.std
        total = 0.0
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _VGG_LAYERS:
                a, b = F.normalize(x, dim=1).chunk(2)
                total = total + (a - b).square().sum(1).mean()
        return total


def edge_distance(one: Tensor, other: Tensor, scales: int = 3) -> Tensor:
    """Measures the mean absolute difference of the pictures' gradients at several resolutions.

    It stands in for a perceptual network where there are no weights of one: blurred edges cost more than by pixels.
    """
    difference, total = one - other, 0.0
    for scale in range(scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        total = total + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return total / scales


class Discriminator(nn.Module):
    """Tells rebuilt pictures from true ones (PatchGAN): a logit for each patch of a picture [B, 3, H, W] in [0, 1]."""

    def __init__(self, width: int = 64, layers: int = 3):
        super().__init__()
        blocks, channels = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)], width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            blocks += [nn.Conv2d(channels, wider, 4, stride, 1), nn.GroupNorm(8, wider), nn.LeakyReLU(0.2)]
            channels = wider
        self.network = nn.Sequential(*blocks, nn.Conv2d(channels, 1, 4, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels * 2 - 1)


def adversarial_losses(discriminator: nn.Module, pixels: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """Computes both sides of the game: (loss of the autoencoder, hinge loss of the discriminator).

    Neither gives the other's weights a gradient, so their sum can go through one backward pass.
    """
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    fooled = -functional_call(discriminator, frozen, (reconstruction,)).mean()
    real, fake = discriminator(pixels), discriminator(reconstruction.detach())
    return fooled, 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
