"""Sample sheets."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def save_sheet(pixels: Tensor, path: Path, columns: int) -> None:
    """Pictures [N, 3, H, W] in [0, 1], row by row, as one PNG."""
    from torchvision.utils import save_image

    save_image(pixels.clamp(0, 1).cpu(), path, nrow=columns, padding=2)
