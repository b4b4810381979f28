"""Position queries: the learned grids that say which token is asked for (arXiv 2511.23469)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PositionQueries(nn.Module):
    """Two learned grids [1, width, *grid]: `queries` asks for the token at a place, `positions` marks a place.

    An image smaller than the grid uses its centre.
    """

    def __init__(self, width: int, grid: tuple[int, int], *, device=None, dtype=None):
        """grid: rows and columns of tokens."""
        super().__init__()
        self.grid = grid
        self.queries = nn.Parameter(torch.empty(1, width, *grid, device=device, dtype=dtype))
        self.positions = nn.Parameter(torch.empty(1, width, *grid, device=device, dtype=dtype))

    def forward(self, height: int, width: int, device=None, dtype=None) -> Tensor:
        """Embeddings for an image of height x width tokens: [2, height*width, D], row-major.

        Index 0: what is added to a latent's embedding at its place; index 1: the query for that place.
        Raises ValueError when the image is larger than the grid.
        """
        rows, columns = self.grid
        if height > rows or width > columns:
            raise ValueError(
                f"An image of {width}x{height} tokens is larger than the {columns}x{rows} this model has queries for; "
                "ask for a smaller one."
            )
        positions, queries = (
            self._centre(grid, height, width).to(device=device, dtype=dtype) for grid in (self.positions, self.queries)
        )
        return torch.stack((positions, queries + positions))

    def _centre(self, grid: Tensor, height: int, width: int) -> Tensor:
        top, left = (self.grid[0] - height) // 2, (self.grid[1] - width) // 2
        crop = grid[0, :, top : top + height, left : left + width]
        return crop.flatten(1).T
