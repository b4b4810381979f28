"""A linear layer that is as fast for a few inputs as it could be: the tokens of a step, the usual thing on a CPU.

MKL multiplies two rows by a large matrix as if it read the matrix twice. With the operands the other way round it reads
it once, which takes half the time; of one row, or of four and more, it makes nothing better. When some more
rows meet a matrix as tall as the modulations', MKL first copies the whole of it. Multiplied in parts, each copy stays
in the cache: that takes two thirds of the time and gives the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGE = 2**20
"""Weights of a matrix that outgrows a core's own cache; smaller ones are not slow."""
TALL = 2**24
"""Weights of a matrix that is multiplied in parts."""
PART = 1536
"""Outputs of a part."""
MANY = 128
"""Rows from which on parts are no faster."""


class Linear(nn.Linear):
    """nn.Linear, faster where a few inputs meet a large float32 matrix on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out]"""
        rows = input.numel() // self.in_features
        if rows < 2 or rows > MANY or not self._is_large_for(input):
            return super().forward(input)
        if rows == 2:
            return self._of_two(input.reshape(2, -1)).reshape(*input.shape[:-1], -1)
        if self.weight.numel() >= TALL and self.bias is not None:
            return self._in_parts(input.reshape(rows, -1)).reshape(*input.shape[:-1], -1)
        return super().forward(input)

    def _of_two(self, rows: Tensor) -> Tensor:
        pair = rows.T
        out = self.weight @ pair if self.bias is None else torch.addmm(self.bias[:, None], self.weight, pair)
        return out.T.contiguous()

    def _in_parts(self, rows: Tensor) -> Tensor:
        out = rows.new_empty(len(rows), self.out_features)
        for part, weight, bias in zip(out.split(PART, dim=1), self.weight.split(PART), self.bias.split(PART)):
            torch.addmm(bias, rows, weight.T, out=part)
        return out

    def _is_large_for(self, input: Tensor) -> bool:
        return (
            input.device.type == "cpu"
            and self.in_features * self.out_features >= LARGE
            and input.dtype == self.weight.dtype == torch.float32
            and not torch.is_grad_enabled()
            and torch.backends.mkl.is_available()
        )


class Layers:
    """The flow head's layers where nobody has others."""

    Linear = Linear
    LayerNorm = nn.LayerNorm
