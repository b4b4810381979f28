"""Solvers of the flow: how the head's evaluations become a latent, and how many of them a token takes."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..networks import few_rows
from ..networks.distilled_head import DistilledHead
from ..networks.flow_head import FlowHead
from .compiled import compiled

SOLVERS = ("euler_maruyama", "euler", "exact", "distilled")

MODULATION_ROWS = 1024
"""Rows (steps x tokens) whose modulations are held at once: 120 MB in bf16 at the published size."""


@dataclass(frozen=True)
class FlowSettings:
    """How the flow is integrated from noise (t = 0) to latent (t = 1). Raises ValueError for a value that cannot be."""

    steps: int = 30
    """Evaluations of the network a token, at least 1."""
    last_step: float = 0.04
    """Length of the last one, in (0, 1); it adds no noise. A single step goes all the way, and a distilled head's
    steps are all alike: they do not ask for it."""
    solver: str = "euler_maruyama"
    """"euler_maruyama", the published one, takes Euler's step on a stochastic equation and needs some 30 of them;
    "exact" solves the same equation over a step, the predicted latent held fixed; "euler" follows the flow without
    added noise; "distilled" jumps, with a head made for it."""
    temperature: float = 1.0
    """Scales all noise, 1 as published."""
    final_steps: int | None = None
    """What `steps` falls to, evenly, while the picture fills up; None: it does not. The idea is DiSA's (arXiv
    2505.20297): late tokens are nearly decided."""
    shift: float = 1.0
    """Where the steps lie: 1 evenly, as published; above 1 closer together near the noise, below 1 near the latent."""

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1.")
        if not 0 < self.last_step < 1:
            raise ValueError(f"last_step is {self.last_step}; it must lie between 0 and 1.")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}; it must be one of {', '.join(SOLVERS)}.")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more.")
        if self.final_steps is not None and not 1 <= self.final_steps <= self.steps:
            raise ValueError(f"final_steps is {self.final_steps}; it must lie between 1 and steps, {self.steps}.")
        if not 0.01 <= self.shift <= 100:
            raise ValueError(f"shift is {self.shift}; it must lie between 0.01 and 100.")

    def steps_at(self, share: float) -> int:
        """Evaluations for a token that is drawn when that share of the picture is there."""
        if self.final_steps is None:
            return self.steps
        return round(self.steps + (self.final_steps - self.steps) * share)

    def grid(self, steps: int) -> tuple[list[float], list[float]]:
        """Where each of so many steps begins, and how long it is."""
        if self.solver == "distilled":
            times = torch.linspace(0, 1, steps + 1, dtype=torch.float32)[:-1]
        else:
            times = torch.linspace(0, 1 - self.last_step, steps, dtype=torch.float32)
        times = times / (times + self.shift * (1 - times)) if self.shift != 1 else times
        times = times.tolist()
        spans = [after - before for before, after in pairwise(times)]
        as_published = self.shift == 1 and steps > 1 and self.solver != "distilled"
        return times, [*spans, self.last_step if as_published else 1 - times[-1]]

    def coefficients(self, times: list[float], spans: list[float]) -> list[tuple[float, float, float]]:
        """What each step of a grid multiplies x, the velocity and the noise of the next step by; see FlowSampler."""
        made = []
        for step, (t, dt) in enumerate(zip(times, spans, strict=True)):
            if step == len(times) - 1 or self.solver in ("euler", "distilled"):
                made.append((1.0, dt, 0.0))
            elif self.solver == "euler_maruyama":
                made.append((1 - dt, (1 + t) * dt, math.sqrt(2 * (1 - t) * dt)))
            else:
                u = times[step + 1]
                kept = ((1 - u) / (1 - t)) ** 2
                predicted = u - kept * t
                made.append((predicted + kept, predicted * (1 - t), (1 - u) * math.sqrt(1 - kept)))
        return made


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


def guided_velocity(
    head: FlowHead, x: Tensor, modulation: Tensor, cfg: float | Tensor, guided: bool, mixture: Mixture | None
) -> tuple[Tensor, Tensor]:
    """x [N, 32] float32 and the modulations of its rows → the velocity under guidance, and that of the conditions
    alone, both [N, 32] float32.

    guided: the modulations are those of the conditional rows, then of the unconditional ones.
    """
    inputs = x.to(modulation.dtype)
    sources = inputs if mixture is None else mixture.inputs(inputs)
    rows = torch.cat((sources, inputs)) if guided else sources
    few = torch.compiler.is_compiling() and few_rows.suits(rows)
    v = (few_rows.velocity(head, rows, modulation) if few else head.velocity(rows, modulation)).float()
    conditional = len(sources)
    v_condition = v[:conditional] if mixture is None else mixture.velocity(v[:conditional])
    return torch.lerp(v[conditional:], v_condition, cfg) if guided else v_condition, v_condition


def advance(x: Tensor, v: Tensor, noise: Tensor, step: int, coefficients: tuple[float, float, float]) -> Tensor:
    """x and v [N, 32], noise [N, M, 32] → x after the step."""
    of_x, of_v, of_noise = coefficients
    x = torch.add(x * of_x if of_x != 1 else x, v, alpha=of_v)
    return torch.add(x, noise[:, step + 1], alpha=of_noise) if of_noise else x


def flow_step(
    head: FlowHead,
    x: Tensor,
    modulation: Tensor,
    cfg: float | Tensor,
    guided: bool,
    coefficients: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """A whole step, to be compiled: as `guided_velocity`, with coefficients [3] of x, velocity and noise [N, 32].

    Returns x after the step and the velocity of the conditions alone, both [N, 32] float32.
    """
    v, v_condition = guided_velocity(head, x, modulation, cfg, guided, None)
    of_x, of_v, of_noise = coefficients.unbind()
    return of_x * x + of_v * v + of_noise * noise, v_condition


class FlowSampler:
    """Integrates the flow for one run: grids of timesteps and their embeddings are made once.

    A step from t to u = t + dt, v being the velocity under guidance and ε standard normal noise:

    - "euler_maruyama": x ← x + ((1 + t)·v − x)·dt + sqrt(2·(1 − t)·dt)·ε
    - "exact": with x̂ = x + (1 − t)·v and r = (1 − u)/(1 − t), x ← u·x̂ + r²·(x − t·x̂) + (1 − u)·sqrt(1 − r²)·ε
    - "euler", and "distilled" with the mean velocity of the step: x ← x + v·dt

    The last one is x ← x + v·dt in all of them. "exact" is the first-order scheme of stochastic exponential
    integrators for this equation (compare SDE-DPM-Solver++, arXiv 2211.01095).
    """

    def __init__(
        self,
        head: FlowHead,
        settings: FlowSettings,
        device,
        dtype,
        *,
        counts: Collection[int] = (),
        expecting: FlowHead | None = None,
        compile: bool = False,
    ):
        """counts: all numbers of steps that the run takes; `settings.steps` alone where there are none. expecting: the
        flow head that tells `expected` for a distilled one; None leaves it out. compile: see compiled.py; not for a
        mixture, whose shapes differ from token to token.

        Raises ValueError for a head that is not the solver's.
        """
        if (settings.solver == "distilled") != isinstance(head, DistilledHead):
            raise ValueError(f"solver is {settings.solver!r}, which is not for this head.")
        self.head = head
        self.settings = settings
        self.expecting = expecting
        self.compile = compile
        grids = {count: settings.grid(count) for count in sorted({*counts} or {settings.steps})}
        self.coefficients = {count: settings.coefficients(*grid) for count, grid in grids.items()}
        self.embedded = {count: self._embed(*grid, device, dtype) for count, grid in grids.items()}
        self._step = None
        if compile:
            self._step = compiled(flow_step)
            self._held = {count: torch.tensor(rows, device=device) for count, rows in self.coefficients.items()}
        self.expected: Tensor | None = None
        """Of the tokens drawn last, what their conditions led to expect before anything was drawn: E[x | c], [N, 32].
        The first evaluation tells it, at t = 0, where x is noise alone: v = E[x | c] - noise."""

    def _embed(self, times: list[float], spans: list[float], device, dtype) -> Tensor:
        """[steps, width]"""
        t = torch.tensor(times, dtype=torch.float32, device=device)
        if isinstance(self.head, DistilledHead):
            return self.head.embed_jump(t, t + torch.tensor(spans, device=device), dtype)
        return self.head.embed_time(t, dtype)

    def tensors(self) -> list[Tensor]:
        """All that differs between runs of the same settings and counts when weights change in place."""
        return list(self.embedded.values())

    def __call__(
        self,
        condition: Tensor,
        noise: Tensor,
        cfg: float | Tensor,
        mixture: Mixture | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Draw latents.

        Args:
            condition: [N, D], or with guidance [2N, D]: conditional rows, then unconditional ones.
            noise: [N, M, 32] float32, M at least the steps; index 0 is the start, index i the noise of step i, however
                many steps there are.
            cfg: guidance scale, a number or float32 []: v_u + cfg·(v_c − v_u).
            mixture: several conditions for some tokens; then condition has a row for each of them and image instead of
                the N conditional ones.
            steps: one of the run's counts; None: the settings' steps.

        Returns [N, 32] float32, not normalised.
        """
        steps = steps or self.settings.steps
        conditional = len(noise) if mixture is None else len(noise) // mixture.tokens * len(mixture.owners)
        noise = noise * self.settings.temperature
        embedded, guided = self._conditions(condition, conditional, cfg, mixture)
        if self.expecting is not None:
            self.expected = self._expectation(condition[:conditional], noise[:, 0], mixture)
        x = noise[:, 0]
        whole = self._step is not None and mixture is None
        if whole:  # for other strides it would be compiled once more
            x, noise = x.clone(memory_format=torch.contiguous_format), noise.contiguous()
        chunk = max(1, MODULATION_ROWS // len(embedded))
        for first in range(0, steps, chunk):
            modulations = self.head.modulations(self.embedded[steps][first : first + chunk, None], embedded)
            for step, modulation in enumerate(modulations, start=first):
                before = x
                if whole:
                    fresh = noise[:, min(step + 1, steps - 1)]
                    held = self._held[steps][step]
                    x, v_condition = self._step(self.head, x, modulation, cfg, guided, held, fresh)
                else:
                    v, v_condition = guided_velocity(self.head, x, modulation, cfg, guided, mixture)
                    x = advance(x, v, noise, step, self.coefficients[steps][step])
                if step == 0 and self.settings.solver != "distilled":
                    self.expected = before + v_condition
        return x

    def _conditions(self, condition: Tensor, conditional: int, cfg, mixture) -> tuple[Tensor, bool]:
        """What the modulations are made of, a row an evaluation; and whether half of them are unconditional."""
        guided = len(condition) > conditional
        if not isinstance(self.head, DistilledHead):
            return self.head.cond_embed(condition), guided
        free = condition[conditional:] if guided else None
        if guided and mixture is not None:
            free = mixture.inputs(free)
        cfg = torch.as_tensor(cfg, dtype=torch.float32, device=condition.device)
        return self.head.embed_guided(condition[:conditional], free, cfg), False

    def _expectation(self, condition: Tensor, noise: Tensor, mixture: Mixture | None) -> Tensor:
        """E[x | c], [N, 32], from one evaluation of the flow head itself."""
        sources = noise if mixture is None else mixture.inputs(noise)
        start = torch.zeros(len(sources), device=noise.device)
        v = self.expecting(sources.to(condition.dtype), start, condition).float()
        return noise + (v if mixture is None else mixture.velocity(v))
