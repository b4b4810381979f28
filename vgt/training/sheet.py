"""Saves sample sheets: many pictures on one, to follow training by eye."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def save_sheet(pixels: Tensor, path: Path, columns: int) -> None:
    """Save pictures [N, 3, H, W] in [0, 1], row by row, as one PNG."""
    from torchvision.utils import save_image

    save_image(pixels.clamp(0, 1).cpu(), path, nrow=columns, padding=2)
