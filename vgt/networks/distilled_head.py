"""The distilled flow head: one evaluation jumps from any time of the flow to any later one, guidance included.

Where the flow head says how the flow moves at a time, this one says where it leads, in conditional and unconditional
condition and the guidance scale together. So a token takes one, two or four evaluations of one row, not thirty of two.
`python -m vgt train head` makes one from a model's own flow head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import FlowHeadConfig
from .flow_head import FlowHead, scalar_embed, sinusoids

MAX_CFG = 8.0
"""The largest guidance scale that the head is trained for; larger ones count as this."""


class DistilledHead(FlowHead):
    """Flow map under guidance: x [N, 32] at time t → the flow's mean velocity [N, 32] from t to u.

    The state at u is x + (u - t) times it. Of the networks of this shape see consistency and mean flow models
    (arXiv 2303.01469, 2505.13447).
    """

    def __init__(self, config: FlowHeadConfig, condition_width: int, *, operations=nn, device=None, dtype=None):
        super().__init__(config, condition_width, operations=operations, device=device, dtype=dtype)
        factory = {"device": device, "dtype": dtype}
        self.span_embed = scalar_embed(config.width, operations, factory)
        self.cfg_embed = scalar_embed(config.width, operations, factory)
        self.free_embed = operations.Linear(condition_width, config.width, bias=False, **factory)

    def forward(self, x: Tensor, t: Tensor, u: Tensor, condition: Tensor, free: Tensor | None, cfg: Tensor) -> Tensor:
        """x [N, 32], t and u [N] with t < u, condition and free [N, D], cfg [N] or [] → mean velocity [N, 32]."""
        embedded = self.embed_guided(condition, free, cfg)
        return self.velocity(x, self.modulations(self.embed_jump(t, u, condition.dtype), embedded))

    def embed_jump(self, t: Tensor, u: Tensor, dtype: torch.dtype) -> Tensor:
        """Times [N] and [N] → [N, width]."""
        return self.embed_time(t, dtype) + self.span_embed(sinusoids(u - t).to(dtype))

    def embed_guided(self, condition: Tensor, free: Tensor | None, cfg: Tensor) -> Tensor:
        """Conditional and unconditional conditions [N, D], scale [N] or [] → [N, width].

        At scale 1, or where `free` is None, the unconditional one has no part in it.
        """
        cfg = cfg.float().clamp(1, MAX_CFG).reshape(-1)
        if free is None:
            cfg = torch.ones_like(cfg)
        embedded = self.cond_embed(condition) + self.cfg_embed(sinusoids(cfg.log()).to(condition.dtype))
        if free is not None:
            embedded = embedded + self.free_embed(free) * (1 - 1 / cfg).to(condition.dtype)[:, None]
        return embedded
