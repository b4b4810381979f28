"""Trains the distilled head: from a model's own flow head, under guidance, to jumps along its trajectories.

The language model has no part in it: its conditions are recorded once (conditions.py). A batch takes some of them, and
for each the flow head follows its path from several noises, new ones in every step: a head that sees noise again
remembers it. Two losses: jumps between points of a path lead where it leads; and, since one jump over all of it blurs
what it cannot tell apart, the latents drawn in one jump and in two are spread as the teacher's are (energy score:
Gneiting and Raftery 2007).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..config import LATENT_CHANNELS
from ..networks.autoencoder import channel_norm
from ..networks.distilled_head import MAX_CFG, DistilledHead
from ..networks.flow_head import FlowHead
from .build import seeded
from .precision import product_dtype
from .settings import Settings
from .trainer import Stage

TIMES = (0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.96, 1)
"""The teacher's grid. It holds the quarters, between which the head learns to jump."""
_QUARTERS = (0, 2, 4, 6, 9)
"""Where they stand in it."""
_OTHERS = ((2, 4), (0, 1), (1, 2), (2, 3), (3, 4))
"""Jumps between quarters that a head of two or four evaluations takes, beside the first half."""


@dataclass(frozen=True)
class Objective:
    """What the distilled head learns."""

    energy: float = 1.0
    """Weight of the energy score."""
    draws: int = 8
    """Noises a condition, at least 2: how the latents spread is what the energy score sees. They share what the heads
    make of the condition, which is most of an evaluation."""
    own_cfg: float = 0.75
    """Share of the conditions that keep their run's guidance scale; the others get any up to 8."""


def new_head(teacher: FlowHead, config, condition_width: int, seed: int) -> DistilledHead:
    """Build a head that begins as the flow head is: its jumps follow the conditional velocity at their start."""
    with seeded(seed):
        head = DistilledHead(config, condition_width)
        head.load_state_dict(teacher.state_dict(), strict=False)
        for layer in (head.span_embed[2], head.cfg_embed[2]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        torch.nn.init.zeros_(head.free_embed.weight)
        return head.float()


@torch.no_grad()
def teacher_path(head: FlowHead, condition: Tensor, free: Tensor, cfg: Tensor, noise: Tensor) -> Tensor:
    """Follow the guided flow to 0, 1/4, 1/2, 3/4 and 1: conditions [N, D], noise [..., N, 32] → [5, ..., N, 32].

    cfg: [N]. It computes in the dtype of the head.
    """
    dtype = head.input_proj.weight.dtype
    embedded = head.cond_embed(torch.cat((condition, free)).to(dtype))
    times = head.embed_time(torch.tensor(TIMES[:-1], device=noise.device), dtype)
    x, path = noise, [noise]
    for time, t, u in zip(times, TIMES, TIMES[1:]):
        both = torch.cat((x, x), dim=-2).to(dtype)
        v_condition, v_free = head.velocity(both, head.modulations(time, embedded)).float().chunk(2, dim=-2)
        x = x + (u - t) * torch.lerp(v_free, v_condition, cfg[:, None])
        path.append(x)
    return torch.stack([path[index] for index in _QUARTERS])


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Take the root mean square over channels, [..., 32] → [...]; its gradient is finite where x is y."""
    return ((x - y).square().mean(-1) + 1e-6).sqrt()


def energy_score(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Score samples [K, N, 32] against samples of what they should be distributed like: least where both agree.

    Samples of equal index stem from the same noise, so they are not compared: the score asks for independent ones.
    """
    count = len(drawn)
    others = ~torch.eye(count, dtype=torch.bool, device=drawn.device)
    across = distance(drawn[:, None], wanted[None])[others]
    within = distance(drawn[:, None], drawn[None])[others]
    return across.mean() - within.mean() / 2


class HeadStage(Stage):
    """Trains a distilled head on recorded conditions and the flow head's paths from them."""

    def __init__(
        self,
        head: DistilledHead,
        teacher: FlowHead,
        recorded: dict[str, Tensor],
        objective: Objective,
        settings: Settings,
    ):
        """recorded: condition and free [N, D], cfg [N]; see conditions.py. teacher: stays as it is."""
        super().__init__()
        self.trained = head
        teacher = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.teacher = teacher.to(product_dtype(settings))
        self.objective, self.settings = objective, settings
        self.recorded = recorded
        self.dataset = TensorDataset(recorded["cfg"])

    def batches(self, first: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
        rows = self.settings.batch_size // world
        step = first
        while True:
            rng = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + step) * 4096 + rank + 2048)
            chosen = torch.randint(len(self.dataset), (rows,), generator=rng)
            yield {name: tensor[chosen].float() for name, tensor in self.recorded.items()}
            step += 1

    def worth_compiling(self):
        return [self.trained]

    def forward(self, batch, rng):
        device = self.teacher.input_proj.weight.device
        condition, free, cfg = (batch[name].to(device) for name in ("condition", "free", "cfg"))
        count = len(cfg)
        any_cfg = 1 + (MAX_CFG - 1) * torch.rand(count, generator=rng)
        own = torch.rand(count, generator=rng) < self.objective.own_cfg
        cfg = torch.where(own.to(device), cfg, any_cfg.to(device)).clamp(1, MAX_CFG)
        noise = torch.randn(self.objective.draws, count, LATENT_CHANNELS, generator=rng).to(device)
        with torch.autocast(device.type, enabled=False):
            path = teacher_path(self.teacher, condition, free, cfg, noise)

        # all the way, the first half, and for some one of the other jumps between quarters
        rows = torch.arange(-(-count // 4), device=device)
        start, end = torch.tensor(_OTHERS, device=device)[torch.randint(len(_OTHERS), rows.shape, generator=rng)].T
        starts = torch.cat((path[0], path[0], path[start, :, rows].transpose(0, 1)), dim=1)
        wanted = torch.cat((path[4], path[2], path[end, :, rows].transpose(0, 1)), dim=1)
        zero = torch.zeros(count, device=device)
        t = torch.cat((zero, zero, start / 4))
        u = torch.cat((zero + 1, zero + 0.5, end / 4))
        embedded = self.trained.embed_guided(condition, free, cfg)
        reached = self._jump(starts, t, u, torch.cat((embedded, embedded, embedded[rows])))
        is_latent = (u == 1)[:, None]
        apart = distance(_latent_where(is_latent, reached), _latent_where(is_latent, wanted)).mean(0)
        one, half, _ = reached.split((count, count, len(rows)), dim=1)
        two = self._jump(half, zero + 0.5, zero + 1, embedded)

        true, one, two = (channel_norm(x, -1) for x in (path[4], one, two))
        parts = apart.split((count, count, len(rows)))
        figures = {name: part.mean() for name, part in zip(("one", "half", "other"), parts)}
        figures["two"] = distance(two, true).mean()
        figures["energy_one"], figures["energy_two"] = energy_score(one, true), energy_score(two, true)
        loss = (figures["one"] + figures["half"] + figures["other"] / 3 + figures["two"]) / 3
        loss = loss + self.objective.energy * (figures["energy_one"] + figures["energy_two"])
        figures["energy_least"] = energy_score(true, true)
        return loss, {name: value.detach() for name, value in figures.items()}

    def _jump(self, x: Tensor, t: Tensor, u: Tensor, embedded: Tensor) -> Tensor:
        """x [K, N, 32] from t to u [N], embedded [N, width]."""
        modulations = self.trained.modulations(self.trained.embed_jump(t, u, embedded.dtype), embedded)
        return x + (u - t)[:, None] * self.trained.velocity(x, modulations).float()


def _latent_where(ends: Tensor, x: Tensor) -> Tensor:
    """Where a path ends stands a latent, of which only the direction counts."""
    return torch.where(ends, channel_norm(x, -1), x)
