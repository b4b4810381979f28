"""Every choice of a run, the same for Python, the nodes, the command line and evaluation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

from .run.flow import FlowSettings
from .run.order import ORDERS
from .run.plan import DECODINGS, GROUPINGS

CFG_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class SamplingSettings:
    """How a picture is drawn. None leaves a value open: the model's own recommendation holds, then the published one.

    Raises ValueError, one sentence, for a value that no model can have.
    """

    height: int | None = None
    """Pixels, whole tokens; so is `width`. Open, with no recommendation: 448, or the most that the model draws."""
    width: int | None = None
    seed: int | None = None
    """Of the noise, and of the order unless `order_seed` is given."""
    cfg: float | None = None
    """Classifier-free guidance scale; at 1 or less only the conditional rows are computed."""
    cfg_schedule: str | None = None
    """"linear" falls from cfg towards 1 over the groups, "constant" does not."""
    cfg_end: float | None = None
    """Share of the picture from which guidance is off, so that a step costs half; 1: it never is."""
    tokens_per_step: int | None = None
    """Tokens drawn at once (the paper's acceleration ratio)."""
    order: str | None = None
    """Of the tokens; see run/order.py."""
    order_seed: int | None = None
    """Of the order of tokens; open, it is `seed`."""
    decoding: str | None = None
    """"published" or "training-consistent"; see run/plan.py."""
    grouping: str | None = None
    """"uniform" or "cosine"; see run/plan.py."""
    flow: FlowSettings | None = None
    """Of the flow head."""

    def __post_init__(self):
        for name, known in _KNOWN.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        if self.cfg is not None and not math.isfinite(self.cfg):
            raise ValueError(f"cfg is {self.cfg}; it must be a finite number.")
        if self.cfg_end is not None and not 0 <= self.cfg_end <= 1:
            raise ValueError(f"cfg_end is {self.cfg_end}; it must lie between 0 and 1.")
        if self.tokens_per_step is not None and self.tokens_per_step < 1:
            raise ValueError(f"tokens_per_step is {self.tokens_per_step}; it must be at least 1.")

    def over(self, other: SamplingSettings) -> SamplingSettings:
        """The same with what is open taken from `other`."""
        names = [field.name for field in fields(self)]
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(other, **own)

    def filled(self, recommended: SamplingSettings | None = None) -> SamplingSettings:
        """The same with what is open taken from `recommended`, then from the published settings."""
        return self.over((recommended or PUBLISHED).over(PUBLISHED))

    def to_dict(self) -> dict:
        """Plain data without what is open; the flow head's settings stand beside the others, under their own names."""
        flow = {} if self.flow is None else asdict(self.flow)
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "flow"}
        return {name: value for name, value in own.items() if value is not None} | flow

    @classmethod
    def from_dict(cls, data: dict) -> SamplingSettings:
        """Inverse of `to_dict`. What this version does not know is left out; flow settings that are absent are the
        published ones. Raises ValueError or TypeError for a value that cannot be."""
        own = {field.name: data[field.name] for field in fields(cls) if field.name != "flow" and field.name in data}
        flow = {field.name: data[field.name] for field in fields(FlowSettings) if field.name in data}
        return cls(**own, flow=FlowSettings(**flow) if flow else None)


_KNOWN = {"cfg_schedule": CFG_SCHEDULES, "order": ORDERS, "decoding": DECODINGS, "grouping": GROUPINGS}

PUBLISHED = SamplingSettings(
    height=448,
    width=448,
    seed=0,
    cfg=4.5,
    cfg_schedule="linear",
    cfg_end=1.0,
    tokens_per_step=1,
    order="random",
    decoding="published",
    grouping="uniform",
    flow=FlowSettings(),
)
"""Those of the paper's GenEval."""

PRESETS = {
    "published": SamplingSettings(cfg_schedule="linear", cfg_end=1.0, flow=FlowSettings()),
    "balanced": SamplingSettings(
        cfg_schedule="linear", cfg_end=1.0, flow=FlowSettings(10, solver="euler", final_steps=4)
    ),
    "fast": SamplingSettings(cfg_schedule="linear", cfg_end=0.5, flow=FlowSettings(9, solver="euler", final_steps=2)),
}
"""Ways to use the flow head, by what one wants of it; docs/frontier.md says what they give."""


def default_side(token_pixels: int, grid: int) -> int:
    """Pixels of the side of a picture whose size nobody says: 448 in whole tokens, or the most the model draws.

    grid: tokens along that side of the model's query grid.
    """
    return token_pixels * min(round(PUBLISHED.height / token_pixels), grid)
