"""The order in which the tokens of a picture are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = ("random", "sequential", "centre", "spiral", "checkerboard")


def draw_order(height: int, width: int, order: str, seed: int | None, first: Tensor | None = None) -> list[int]:
    """The places of a grid of height x width tokens, row-major numbers, in drawing order.

    Args:
        order: "random" (a permutation from `seed`, as published); "sequential" (row by row); "centre" (from the middle
            outwards, equal distances in random order); "spiral" (from the middle around); "checkerboard" (every second
            place in random order, then the others).
        first: [height, width], brightest first; `order` decides between equal places. None: `order` alone.

    Raises ValueError for an unknown order or a map of another shape.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; it must be one of {', '.join(ORDERS)}.")
    if first is not None and first.shape != (height, width):
        raise ValueError(f"The order map is {list(first.shape)}; it must have {height}x{width} tokens.")
    places = _places(height, width, order, seed)
    if first is not None:
        brightness = first.flatten().tolist()
        places.sort(key=lambda place: -brightness[place])  # stable: equal places stay in their order
    return places


def _places(height: int, width: int, order: str, seed: int | None) -> list[int]:
    tokens = height * width
    if order == "sequential":
        return list(range(tokens))
    if order == "spiral":
        return _spiral(height, width)[::-1]
    generator = torch.Generator().manual_seed(0 if seed is None else seed)
    places = torch.randperm(tokens, generator=generator).tolist()
    if order == "centre":
        # doubled, so that they are whole numbers and equal distances are equal
        places.sort(key=lambda p: (2 * (p // width) - height + 1) ** 2 + (2 * (p % width) - width + 1) ** 2)
    if order == "checkerboard":
        places.sort(key=lambda p: (p // width + p % width) % 2)
    return places


def _spiral(height: int, width: int) -> list[int]:
    """Places from the top left corner around and inwards."""
    grid = torch.arange(height * width).view(height, width)
    places = []
    while grid.numel():
        places += grid[0].tolist()
        grid = grid[1:].T.flip(0)  # the next side becomes the top row
    return places
