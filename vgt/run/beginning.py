"""What a stopped run leaves beside its latent, so that going on need not read the drawn tokens again."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..networks.language_model import KVCache
from .plan import Plan


@dataclass
class Beginning:
    """Given to `generate` for a run that stops, it is filled in; given again with the latent, it is read.

    It holds keys and values of the text and the drawn tokens. Without it, or where it is of another model, prompt or
    latent, the tokens are read one after the other as they were drawn, which gives the same.
    """

    plan: Plan | None = None
    steps: int = 0
    """How many of the plan's steps are done."""
    images: tuple[int, ...] = ()
    """The batch_index of the run."""
    ids: Tensor | None = None
    """int64 [rows, text tokens], padded."""
    latents: Tensor | None = None
    """float32 [B, T, 32]."""
    keys: Tensor | None = None
    """[depth, rows, kv_heads, slots, head_width]; so are `values`."""
    values: Tensor | None = None
    generator: weakref.ref | None = None

    def fill(self, generator, plan: Plan, steps: int, images: Sequence[int], ids: Tensor, run, cache: KVCache) -> None:
        """Keep a run that has done so many steps, in main memory."""
        end = plan.steps[steps - 1].slot + plan.inputs(steps - 1)
        self.plan, self.steps, self.images, self.ids = plan, steps, tuple(images), ids
        self.latents, self.keys, self.values = (
            part.to("cpu", copy=True) for part in (run.latents, cache.keys[..., :end, :], cache.values[..., :end, :])
        )
        self.generator = weakref.ref(generator)

    def begun(self, generator, latent: Tensor, wanted: Tensor, images: Sequence[int]) -> Plan | None:
        """The plan that was begun, where just what it drew is known of the latent.

        latent: [B, 32, h, w]; wanted: bool [h, w], True where to draw; images: their batch_index.
        """
        own = self.generator and self.generator()
        if own not in (None, generator):
            logging.warning("VGT: another model began this latent; here it is a picture to repaint.")
        if self.plan is None or own is not generator or not set(images) <= set(self.images):
            return None
        drawn = self.plan.places_before(self.steps)
        if sorted(drawn) != (~wanted.flatten()).nonzero().flatten().tolist():
            return None
        rows = [self.images.index(image) for image in images]
        mine = self.latents[rows][:, drawn]
        return self.plan if mine.equal(latent.to(mine).flatten(2).transpose(1, 2)[:, drawn]) else None

    def cache(self, plan: Plan, ids: Tensor, images: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Keys and values of what the given steps of `plan` feed, [depth, rows, kv_heads, slots, head_width].

        None where they are not those of this run. The latent must have passed `begun`.
        """
        own, batch, given = self.plan, len(self.images), plan.given
        if given != self.steps or plan.steps[:given] != own.steps[:given]:
            return None
        kinds = len(plan.lengths) // len(images)  # conditional prompts, then the unconditional one
        rows = [kind * batch + self.images.index(image) for kind in range(kinds) for image in images]
        fed = min(own.rows[:given], default=len(own.lengths)) // batch
        needed = max(plan.rows[given:], default=len(plan.lengths)) // len(images)
        if rows[-1] >= len(self.ids) or needed > fed or not self.ids[rows].equal(ids):
            return None
        if [own.lengths[row] for row in rows] != list(plan.lengths):
            return None
        return self.keys[:, rows], self.values[:, rows]
