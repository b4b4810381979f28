"""From what a run is asked for to its plan: order, groups, guidance, prompts, and what a repaint gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import LATENT_CHANNELS
from ..prompt import PromptTokenizer
from ..sampling import SamplingSettings
from .control import Change, Region, cfg_scales, check_changes, prompt_mixes
from .order import draw_order
from .plan import Plan, Step, cut_groups, make_plan

if TYPE_CHECKING:
    from .generation import Generator


@dataclass(frozen=True)
class PlannedRun:
    """A plan and what belongs to it."""

    plan: Plan
    ids: Tensor
    """int64 [rows, text tokens], padded, without `<img>`."""
    last: int
    """The step with which the run ends."""


def plan_run(
    generator: Generator,
    tokenizer: PromptTokenizer,
    prompts: Sequence[str],
    negative: str | Sequence[str] | None,
    settings: SamplingSettings,
    wanted: Tensor | None,
    *,
    regions: Sequence[Region],
    changes: Sequence[Change],
    order_map: Tensor | None,
    stop_at: float,
    begun: Plan | None = None,
) -> PlannedRun:
    """Plan a run; the arguments are those of generation.generate.

    settings: complete. wanted: bool [h, w], True where to draw, somewhere at least; None: everywhere. begun: the plan
    of a run that drew just what is known; where these settings would have drawn it otherwise, they hold for the rest.
    Raises ValueError when an argument is out of range.
    """
    if not 0 < stop_at <= 1:
        raise ValueError(f"stop_at is {stop_at}; it must lie between 0 (not included) and 1.")
    check_changes(changes)
    h, w = grid = token_grid(generator, settings)
    order_seed = settings.seed if settings.order_seed is None else settings.order_seed
    drawn, known, given = draw_order(h, w, settings.order, order_seed, order_map), [], 0
    earlier: list[Step] = []
    if wanted is not None:
        wanted = wanted.flatten().tolist()
        given = _leading_groups(cut_groups(drawn, settings.tokens_per_step, settings.grouping), wanted)
        if not given:
            known = [place for place in drawn if not wanted[place]]
            drawn = [place for place in drawn if wanted[place]]
            if begun is not None and begun.isolated == (settings.decoding == "training-consistent"):
                known = list(begun.known)
                earlier = _steps_that_drew(begun, wanted)
                given = len(earlier)
    groups = cut_groups(drawn, settings.tokens_per_step, settings.grouping)
    groups = [*(step.group for step in earlier), *groups]
    shares = _shares(groups, len(known), h * w)
    scales = cfg_scales(published_scales(settings.cfg, settings.cfg_schedule, len(groups)), shares, changes)
    scales = [1.0 if share >= settings.cfg_end else scale for scale, share in zip(scales, shares)]
    texts, mixes = prompt_mixes(grid, groups, shares, regions, changes)
    asked = [prompt if text is None else text for text in texts for prompt in prompts]
    text = tokenizer(asked, _negatives(negative, len(prompts)) if max(scales) > 1 else None)
    flow = settings.flow
    plan = make_plan(
        drawn,
        settings.tokens_per_step,
        lengths=text.lengths,
        start=len(tokenizer.image_start),
        counts_padding=generator.counts_padding,
        known=known,
        given=given,
        prompts=len(texts),
        mixes=mixes if len(texts) > 1 else (),
        rows=_rows(scales, len(asked), len(text.lengths)),
        flow_steps=[flow.steps_at(share) for share in shares] if flow.final_steps else (),
        decoding=settings.decoding,
        grouping=settings.grouping,
        cfg=scales,
        begun=earlier,
    )
    positions = int(plan.positions().max()) + 1
    if positions > generator.config.language.max_positions:
        raise ValueError(
            f"The prompt and the image take {positions} positions, but this model has "
            f"{generator.config.language.max_positions}; shorten the prompt or draw a smaller image."
        )
    return PlannedRun(plan, text.ids, _last_step(groups[given:], stop_at) + given)


def token_grid(generator: Generator, settings: SamplingSettings) -> tuple[int, int]:
    """Height and width of the picture in tokens. ValueError for a size that the model does not draw."""
    height, width, side = settings.height, settings.width, generator.token_pixels
    if height % side or width % side or height < side or width < side:
        raise ValueError(f"The size is {width}x{height}; width and height must be multiples of {side}.")
    rows, columns = generator.config.grid
    if height > rows * side or width > columns * side:
        raise ValueError(f"The size is {width}x{height}; this model draws at most {columns * side}x{rows * side}.")
    return height // side, width // side


def check_repaint(latent: Tensor, mask: Tensor | None, batch: int, h: int, w: int) -> Tensor:
    """The mask: bool [h, w], True where to draw."""
    if latent.shape != (batch, LATENT_CHANNELS, h, w):
        raise ValueError(
            f"The latent is {list(latent.shape)}; for these prompts and this size it must be "
            f"{[batch, LATENT_CHANNELS, h, w]}."
        )
    if mask is None:
        mask = (latent == 0).all(dim=1).any(dim=0)
    if mask.shape != (h, w):
        raise ValueError(f"The mask is {list(mask.shape)}; for this size it must be {h}x{w} tokens.")
    if not torch.isfinite(latent).all():
        raise ValueError("The latent holds NaN or infinite values; encode the image again.")
    return mask


def published_scales(cfg: float, schedule: str, steps: int) -> list[float]:
    """The guidance scale of each step, as VGT's "linear" or "constant" schedule has it."""
    if schedule == "constant":
        return [cfg] * steps
    return [cfg, *(1 + (cfg - 1) * (steps - index) / steps for index in range(1, steps))]


def _leading_groups(groups: list[tuple[int, ...]], wanted: list[bool]) -> int:
    """How many of the first groups are known, where these are all that is known; else 0."""
    known = len(wanted) - sum(wanted)
    for count, group in enumerate(groups):
        if known == 0:
            return count
        if any(wanted[place] for place in group):
            return 0
        known -= len(group)
    return 0


def _steps_that_drew(begun: Plan, wanted: list[bool]) -> list[Step]:
    """The first steps of a plan, as far as what they draw is known."""
    return list(takewhile(lambda step: not any(wanted[place] for place in step.group), begun.steps))


def _shares(groups: list[tuple[int, ...]], known: int, tokens: int) -> list[float]:
    """The share of the picture that is there when each step begins."""
    sizes = [len(group) for group in groups[:-1]]
    return [done / tokens for done in accumulate(sizes, initial=known)]


def _rows(scales: list[float], conditional: int, rows: int) -> tuple[int, ...]:
    """How many rows each step feeds: from where guidance ends for good, the conditional ones are enough."""
    last = max((index for index, scale in enumerate(scales) if scale != 1), default=-1)
    if rows == conditional or last == len(scales) - 1:
        return ()
    return tuple(rows if index <= last else conditional for index in range(len(scales)))


def _last_step(groups: list[tuple[int, ...]], stop_at: float) -> int:
    """The step that brings the drawn tokens to that share of all."""
    ends = list(accumulate(len(group) for group in groups))
    return next(index for index, end in enumerate(ends) if end >= stop_at * ends[-1] - 1e-9)


def _negatives(negative: str | Sequence[str] | None, batch: int) -> list[str | None]:
    negatives = [negative] * batch if negative is None or isinstance(negative, str) else list(negative)
    if len(negatives) != batch:
        raise ValueError(f"There are {len(negatives)} negative prompts for {batch} prompts; give one, or as many.")
    return negatives
