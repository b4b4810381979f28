"""What steers a run beside its prompt: other prompts for regions of the picture and for parts of the run, and cfg.

Every prompt is a row of the language model, and all rows read the same drawn tokens. A token is drawn from the row that
holds at its place and time, or from several, by weight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

RAMPS = ("step", "linear")

Mix = tuple[tuple[int, float], ...]
"""Which prompts draw a token, and the weight of each; the weights add up to 1."""


@dataclass(frozen=True)
class Region:
    """A prompt of its own for a part of the picture.

    mask: [H, W] in [0, 1], any size, 1 where the prompt holds; a token belongs to it when half of its cell does.
    strength: 0 to 1, how much of the region's tokens the prompt decides. feather: tokens over which it fades in.
    Raises ValueError for values out of range.
    """

    prompt: str
    mask: Tensor
    strength: float = 1.0
    feather: int = 0

    def __post_init__(self):
        if not isinstance(self.mask, Tensor):
            raise ValueError(f"A region's mask is a {type(self.mask).__name__}; it must be a tensor [height, width].")
        if self.mask.ndim != 2 or not self.mask.numel():
            raise ValueError(f"A region's mask is {list(self.mask.shape)}; it must be [height, width].")
        if not 0 <= self.strength <= 1:
            raise ValueError(f"A region's strength is {self.strength}; it must lie between 0 and 1.")
        if self.feather < 0:
            raise ValueError(f"A region's feather is {self.feather}; it must be 0 tokens or more.")

    def weights(self, height: int, width: int) -> Tensor:
        """How much the prompt decides of each token: float64 [height, width] in [0, 1]."""
        mask = F.adaptive_avg_pool2d(self.mask[None, None].double().cpu(), (height, width))
        inside = (mask >= 0.5).double()
        if self.feather:
            reach = self.feather
            inside = F.avg_pool2d(F.pad(inside, (reach,) * 4, mode="replicate"), 2 * reach + 1, stride=1)
        return inside[0, 0] * self.strength


@dataclass(frozen=True)
class Change:
    """From a share of the run on another prompt or another cfg holds.

    start: share of the picture's tokens, 0 to 1. prompt, cfg: None leaves it as it was. ramp: "step" changes at once;
    "linear" goes there evenly from the change before (from the beginning, for the first one). Raises ValueError for
    values out of range.
    """

    start: float
    prompt: str | None = None
    cfg: float | None = None
    ramp: str = "step"

    def __post_init__(self):
        if not 0 <= self.start <= 1:
            raise ValueError(f"A change starts at {self.start}; it must lie between 0 and 1.")
        if self.cfg is not None and not math.isfinite(self.cfg):
            raise ValueError(f"A change's cfg is {self.cfg}; it must be a finite number.")
        if self.ramp not in RAMPS:
            raise ValueError(f"ramp is {self.ramp!r}; it must be one of {', '.join(RAMPS)}.")


def check_changes(changes: Sequence[Change]) -> None:
    """Raise ValueError unless the changes come in the order of their starts."""
    for before, after in pairwise(changes):
        if after.start == before.start:
            raise ValueError(f"Two changes are at {after.start:g} of the run; make them one.")
        if after.start < before.start:
            raise ValueError(
                f"A change at {after.start:g} of the run comes after one at {before.start:g}; put them in order."
            )


def cfg_scales(published: Sequence[float], shares: Sequence[float], changes: Sequence[Change]) -> list[float]:
    """The guidance scale of each step.

    published: what holds without changes. shares: the share of the picture that is drawn when each step begins. From
    the first change of cfg on, changes alone say the scale.
    """
    points = [(change.start, change.cfg, change.ramp) for change in changes if change.cfg is not None]
    return [_value(share, before, points) for share, before in zip(shares, published)]


def _value(share: float, before: float, points: list[tuple[float, float, str]]) -> float:
    start, value = 0.0, before
    for at, target, ramp in points:
        if share < at:
            if ramp == "linear":
                value += (target - value) * (share - start) / (at - start)
            break
        start, value = at, target
    return value


def prompt_mixes(
    grid: tuple[int, int],
    groups: Sequence[Sequence[int]],
    shares: Sequence[float],
    regions: Sequence[Region],
    changes: Sequence[Change],
) -> tuple[list[str | None], list[tuple[Mix, ...]]]:
    """Which prompts draw which token.

    Args:
        grid: height and width of the picture in tokens.
        groups: the places that each step draws.
        shares: the share of the picture that is drawn when each step begins.
        regions: later ones lie over earlier ones; where there is none, the common prompt holds.

    Returns the prompts that draw anything, None being the common one, and a mix of their numbers for each token of each
    group.
    """
    later = [change for change in changes if change.prompt is not None]
    texts = [change.prompt for change in later] + [region.prompt for region in regions]
    layers = []
    for region in regions:
        weights = region.weights(*grid)
        if not weights.any():
            logging.warning(f"VGT: the region {region.prompt!r} covers no token of the picture and changes nothing.")
        layers.append(weights.flatten().tolist())
    points = [(change.start, float(number), change.ramp) for number, change in enumerate(later, start=1)]
    mixes = []
    for group, share in zip(groups, shares):
        number = _value(share, 0.0, points)
        low, part = int(number), number - int(number)
        common = {low: 1 - part} | ({low + 1: part} if part else {})
        mixes.append([_mix(common, [layer[place] for layer in layers], 1 + len(later)) for place in group])
    used = sorted({number for group in mixes for mix in group for number, _ in mix})
    row = {number: index for index, number in enumerate(used)}
    mixes = [tuple(tuple((row[number], weight) for number, weight in mix) for mix in group) for group in mixes]
    return [[None, *texts][number] for number in used], mixes


def _mix(common: dict[int, float], layers: list[float], first: int) -> Mix:
    """Lay regions over the common prompts: each takes its weight from what lies below it."""
    weights = dict(common)
    for number, alpha in enumerate(layers, start=first):
        if alpha:
            weights = {n: w * (1 - alpha) for n, w in weights.items()} | {number: alpha}
    return tuple((number, weight) for number, weight in sorted(weights.items()) if weight > 0)
