"""Trains the distilled head: from a model's own flow head, under guidance, to jumps along its trajectories.

The language model has no part in it: its conditions are recorded once (conditions.py). A batch takes some of them,
each with several noises. The flow head's own path from each noise is the teacher. Two losses: jumps between points of a
path lead where it leads; and, since one jump over all of it blurs what it cannot tell apart, the latents drawn in one
jump and in two are spread as the teacher's are (energy score: Gneiting and Raftery 2007).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..networks.autoencoder import channel_norm
from ..networks.distilled_head import DistilledHead
from ..networks.flow_head import FlowHead
from .build import seeded
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
    """Follow the guided flow to 0, 1/4, 1/2, 3/4 and 1: conditions [N, D], cfg [N], noise [N, 32] → [5, N, 32]."""
    embedded = head.cond_embed(torch.cat((condition, free)))
    times = head.embed_time(torch.tensor(TIMES[:-1], device=noise.device), embedded.dtype)
    x, path = noise, [noise]
    for time, t, u in zip(times, TIMES, TIMES[1:]):
        v_condition, v_free = head.velocity(torch.cat((x, x)), head.modulations(time, embedded)).float().chunk(2)
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

    def __init__(self, head: DistilledHead, recorded: dict[str, Tensor], objective: Objective, settings: Settings):
        """recorded: condition and free [N, D], cfg [N], path [N, K, 5, 32]; see conditions.py."""
        super().__init__()
        self.trained = head
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
        device = next(self.trained.parameters()).device
        path = batch["path"].to(device).permute(2, 1, 0, 3)  # 5, K, conditions, 32
        shape = path.shape[1:]
        condition, free, cfg = (batch[name].to(device) for name in ("condition", "free", "cfg"))
        embedded = self.trained.embed_guided(condition, free, cfg).repeat(shape[0], 1)
        path = path.flatten(1, 2)
        rows = torch.arange(path.shape[1], device=device)

        # all the way, the first half, and one of the other jumps between quarters
        start, end = torch.tensor(_OTHERS, device=device)[torch.randint(len(_OTHERS), rows.shape, generator=rng)].T
        starts = torch.cat((path[0], path[0], path[start, rows]))
        wanted = torch.cat((path[4], path[2], path[end, rows]))
        t = torch.cat((torch.zeros_like(rows), torch.zeros_like(rows), start)) / 4
        u = torch.cat((torch.full_like(rows, 4), torch.full_like(rows, 2), end)) / 4
        reached = self._jump(starts, t, u, embedded.repeat(3, 1))
        is_latent = (u == 1)[:, None]
        apart = distance(_latent_where(is_latent, reached), _latent_where(is_latent, wanted))
        one, half, _ = reached.chunk(3)
        two = self._jump(half, t[: len(rows)] + 0.5, u[: len(rows)], embedded)

        true, one, two = (channel_norm(x, -1).view(shape) for x in (path[4], one, two))
        figures = {name: part.mean() for name, part in zip(("one", "half", "other"), apart.chunk(3))}
        figures["two"] = distance(two, true).mean()
        figures["energy_one"], figures["energy_two"] = energy_score(one, true), energy_score(two, true)
        loss = apart.mean() + figures["two"] / 3
        loss = loss + self.objective.energy * (figures["energy_one"] + figures["energy_two"])
        figures["energy_least"] = energy_score(true, true)
        return loss, {name: value.detach() for name, value in figures.items()}

    def _jump(self, x: Tensor, t: Tensor, u: Tensor, embedded: Tensor) -> Tensor:
        modulations = self.trained.modulations(self.trained.embed_jump(t, u, embedded.dtype), embedded)
        return x + (u - t)[:, None] * self.trained.velocity(x, modulations).float()


def _latent_where(ends: Tensor, x: Tensor) -> Tensor:
    """Where a path ends stands a latent, of which only the direction counts."""
    return torch.where(ends, channel_norm(x, -1), x)
