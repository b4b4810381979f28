"""The flow matching head. What integrates its flow is in run/flow.py.

Where the time goes: a token takes one evaluation of the network per flow step, and 60 % of its weights only turn the
condition and the timestep into modulations (shift, scale, gate of every layer). The condition is fixed for a token and
the timesteps for a run, so all modulations of all steps are one matrix product, done before the steps begin.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LATENT_CHANNELS, FlowHeadConfig

_TIME_FREQUENCIES = 128


def sinusoids(t: Tensor) -> Tensor:
    """[N] → [N, 256] float32: cosines, then sines, of t at 128 frequencies from 1 down to 1/10000."""
    frequency = torch.arange(_TIME_FREQUENCIES, device=t.device, dtype=torch.float32) / _TIME_FREQUENCIES
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * frequency)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def scalar_embed(width: int, operations, factory: dict) -> nn.Sequential:
    """Sinusoids [N, 256] → [N, width]."""
    return nn.Sequential(
        operations.Linear(2 * _TIME_FREQUENCIES, width, **factory),
        nn.SiLU(),
        operations.Linear(width, width, **factory),
    )


class _Block(nn.Module):
    def __init__(self, width: int, operations, **factory):
        super().__init__()
        self.in_ln = operations.LayerNorm(width, eps=1e-6, **factory)
        self.mlp = nn.Sequential(
            operations.Linear(width, width, **factory), nn.SiLU(), operations.Linear(width, width, **factory)
        )

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.in_ln(x), scale)))


class FlowHead(nn.Module):
    """MLP with adaptive layer norm: x [N, 32], t [N], condition [N, D] → velocity [N, 32]."""

    def __init__(self, config: FlowHeadConfig, condition_width: int, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        width = config.width
        self.width, self.depth = width, config.depth
        self.time_embed = scalar_embed(width, operations, factory)
        self.cond_embed = operations.Linear(condition_width, width, **factory)
        self.input_proj = operations.Linear(LATENT_CHANNELS, width, **factory)
        # shift, scale, gate of each block, then shift and scale of the output: one matrix instead of depth + 1
        self.modulation = operations.Linear(width, (3 * config.depth + 2) * width, **factory)
        self.blocks = nn.ModuleList(_Block(width, operations, **factory) for _ in range(config.depth))
        self.output_proj = operations.Linear(width, LATENT_CHANNELS, **factory)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x [N, 32], t [N] in [0, 1], condition [N, D] → velocity [N, 32]."""
        return self.velocity(x, self.modulations(self.embed_time(t, condition.dtype), self.cond_embed(condition)))

    def embed_time(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """[N] → [N, width]: cosines, then sines, of t at 128 frequencies from 1 down to 1/10000, through an MLP."""
        return self.time_embed(sinusoids(t).to(dtype))

    def modulations(self, time: Tensor, condition: Tensor) -> Tensor:
        """Embedded time and condition, broadcast against each other → [..., 3 * depth + 2, width].

        Scales come with their 1 added.
        """
        modulations = self.modulation(F.silu(time + condition)).unflatten(-1, (-1, self.width))
        with torch.no_grad():  # a constant leaves the gradient as it is; autograd would copy all that is written into
            modulations[..., 1::3, :] += 1
        return modulations

    def velocity(self, x: Tensor, modulations: Tensor) -> Tensor:
        """x [N, 32], modulations [N, 3 * depth + 2, width] → velocity [N, 32]. The part that depends on x."""
        shifts = modulations.unbind(-2)
        x = self.input_proj(x)
        for index, block in enumerate(self.blocks):
            x = block(x, *shifts[3 * index : 3 * index + 3])
        return self.output_proj(torch.addcmul(shifts[-2], F.layer_norm(x, x.shape[-1:], eps=1e-6), shifts[-1]))
