"""The flow matching head: network and sampler.

Where the time goes: a token takes one evaluation of the network per flow step, and 60 % of its weights only turn the
condition and the timestep into modulations (shift, scale, gate of every layer). The condition is fixed for a token and
the timesteps for a run, so all modulations of all steps are one matrix product, done before the steps begin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LATENT_CHANNELS, FlowHeadConfig

SOLVERS = ("euler_maruyama", "euler")

_TIME_FREQUENCIES = 128
MODULATION_ROWS = 1024
"""Rows (steps x tokens) whose modulations are held at once: 120 MB in bf16 at the published size."""


@dataclass(frozen=True)
class FlowSettings:
    """How the flow is integrated from noise (t = 0) to latent (t = 1).

    steps: evaluations of the network a token, at least 1. last_step: length of the last one, in (0, 1); it adds no
    noise. solver: "euler_maruyama" (published, stochastic) or "euler" (the deterministic flow). temperature: scales all
    noise, 1 as published. Raises ValueError on anything else.
    """

    steps: int = 30
    last_step: float = 0.04
    solver: str = "euler_maruyama"
    temperature: float = 1.0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1.")
        if not 0 < self.last_step < 1:
            raise ValueError(f"last_step is {self.last_step}; it must lie between 0 and 1.")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; it must be one of {', '.join(SOLVERS)}.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more.")


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
        self.time_embed = nn.Sequential(
            operations.Linear(2 * _TIME_FREQUENCIES, width, **factory),
            nn.SiLU(),
            operations.Linear(width, width, **factory),
        )
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
        frequency = torch.arange(_TIME_FREQUENCIES, device=t.device, dtype=torch.float32) / _TIME_FREQUENCIES
        angles = t.float()[:, None] * torch.exp(-math.log(10000) * frequency)
        return self.time_embed(torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype))

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


@dataclass(frozen=True)
class Mixture:
    """Several conditions for a token: its velocity is the weighted sum of theirs.

    owners: int64 [n], the token of each condition; weights: float32 [n]; tokens: how many there are. Rows of a network
    input or output go condition by condition (token by token), the images of each together.
    """

    owners: Tensor
    weights: Tensor
    tokens: int

    def inputs(self, x: Tensor) -> Tensor:
        """x [tokens * images, 32] → what each condition starts from, [n * images, 32]."""
        return x.unflatten(0, (self.tokens, -1)).index_select(0, self.owners).flatten(0, 1)

    def velocity(self, v: Tensor) -> Tensor:
        """Velocities [n * images, 32] → those of the tokens [tokens * images, 32]."""
        weighted = v.unflatten(0, (len(self.owners), -1)) * self.weights[:, None, None]
        return weighted.new_zeros(self.tokens, *weighted.shape[1:]).index_add_(0, self.owners, weighted).flatten(0, 1)


class FlowSampler:
    """Integrates the flow for one run: the grid of timesteps and its embeddings are made once.

    Published solver: x ← x + ((1 + t)·v − x)·dt + sqrt(2·(1 − t)·dt)·ε over `steps` points from
    0 to 1 − last_step, then x ← x + v·last_step. The "euler" solver: x ← x + v·dt on the same grid.
    """

    def __init__(self, head: FlowHead, settings: FlowSettings, device, dtype):
        self.head = head
        self.settings = settings
        times = torch.linspace(0, 1 - settings.last_step, settings.steps, dtype=torch.float32)
        self.time = head.embed_time(times.to(device), dtype)
        self.times = times.tolist()
        self.expected: Tensor | None = None
        """Of the tokens drawn last, what their conditions led to expect before anything was drawn: E[x | c], [N, 32].
        The first evaluation tells it, at t = 0, where x is noise alone: v = E[x | c] - noise."""

    def __call__(self, condition: Tensor, noise: Tensor, cfg: float | Tensor, mixture: Mixture | None = None) -> Tensor:
        """Draw latents.

        Args:
            condition: [N, D], or with guidance [2N, D]: conditional rows, then unconditional ones.
            noise: [N, steps, 32] float32; index 0 is the start, index i the noise of step i.
            cfg: guidance scale, a number or float32 []: v_u + cfg·(v_c − v_u).
            mixture: several conditions for some tokens; then condition has a row for each of them and image instead of
                the N conditional ones.

        Returns [N, 32] float32, not normalised.
        """
        settings = self.settings
        conditional = len(noise) if mixture is None else len(noise) // mixture.tokens * len(mixture.owners)
        guided = len(condition) > conditional
        condition_embed = self.head.cond_embed(condition)
        noise = noise * settings.temperature
        x = noise[:, 0]
        chunk = max(1, MODULATION_ROWS // condition.shape[0])
        for first in range(0, settings.steps, chunk):
            modulations = self.head.modulations(self.time[first : first + chunk, None], condition_embed)
            for step, modulation in enumerate(modulations, start=first):
                inputs = x.to(condition.dtype)
                sources = inputs if mixture is None else mixture.inputs(inputs)
                v = self.head.velocity(torch.cat((sources, inputs)) if guided else sources, modulation).float()
                v_condition = v[:conditional] if mixture is None else mixture.velocity(v[:conditional])
                if step == 0:
                    self.expected = x + v_condition
                v = torch.lerp(v[conditional:], v_condition, cfg) if guided else v_condition
                x = self._advance(x, v, step, noise)
        return x

    def _advance(self, x: Tensor, v: Tensor, step: int, noise: Tensor) -> Tensor:
        if step == self.settings.steps - 1:
            return torch.add(x, v, alpha=self.settings.last_step)
        t = self.times[step]
        dt = self.times[step + 1] - t
        if self.settings.solver == "euler":
            return torch.add(x, v, alpha=dt)
        x = torch.add(x * (1 - dt), v, alpha=(1 + t) * dt)
        return torch.add(x, noise[:, step + 1], alpha=math.sqrt(2 * (1 - t) * dt))
