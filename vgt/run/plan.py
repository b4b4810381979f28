"""A run as plain data: which inputs each step feeds, at which positions and cache slots, and what they may see.

Everything here is known before the first token is drawn. planning.py makes plans of what is asked for; generation.py
walks one and knows nothing of its rules.

Each step feeds the latents drawn before it, in one of two forms, and the position queries of the tokens it draws.

Published decoding appends every input to the cache, and from the second step on masks nothing
but the future, so the padding of the text is seen; where several tokens are drawn at once, each is fed as its query
again and its latent. Positions run on row by row, or are counted from the padded text: each family has its way.

Training-consistent decoding keeps in the cache just the sequence of training, `<img> q l q l …`: padding is never
seen, the queries of a group share the next free position and do not see each other, and the following step writes
over their slots. The first of them already stands where the sequence goes on, so it stays and is not fed again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .control import Mix

LEAST = 4
"""Steps of one size in a run from which on it pays to capture or compile one."""

DECODINGS = ("published", "training-consistent")
GROUPINGS = ("uniform", "cosine")

QUERY, LATENT = "q", "l"


@dataclass(frozen=True)
class Step:
    """One pass through the language model."""

    kinds: str
    """One letter an image input, in feeding order: "q" a position query, "l" a latent."""
    places: tuple[int, ...]
    """The token place of each image input."""
    positions: tuple[int, ...]
    """The position of each image input."""
    relative: bool
    """Positions are counted from the end of the row's own text rather than from the start of the sequence."""
    slot: int
    """The first cache slot written; the inputs take consecutive ones."""
    group: tuple[int, ...]
    """The places drawn in this step. Their queries are its last inputs."""

    def __str__(self) -> str:
        base = "+" if self.relative else "@"
        inputs = (f"{k}{p}{base}{n}" for k, p, n in zip(self.kinds, self.places, self.positions, strict=True))
        return f"slot {self.slot}: {' '.join(inputs)}"


@dataclass(frozen=True)
class Plan:
    """All steps of a run. The first one feeds the text (padded to `text` tokens, which include `<img>`) as well."""

    steps: tuple[Step, ...]
    lengths: tuple[int, ...]
    """Text tokens of each row, without padding and without the `<img>` tokens."""
    padded: int
    """The longest of them: `<img>` starts at this slot."""
    start: int
    """Number of `<img>` tokens."""
    isolated: bool
    """Training-consistent: padding is never seen, and queries of a group do not see each other."""
    known: tuple[int, ...]
    """Places whose latents are given, in the order in which the first step feeds them."""
    given: int = 0
    """Leading steps whose latents are given too, as an earlier run drew them: they are fed, and nothing is drawn."""
    prompts: int = 1
    """Prompts of an image that tokens are drawn from, each a row of the language model."""
    mixes: tuple[tuple[Mix, ...], ...] = ()
    """With several prompts: which of them draw each token of each step."""
    rows: tuple[int, ...] = ()
    """Rows that each step feeds, where not all do to the end: the conditional ones, which come first."""
    flow_steps: tuple[int, ...] = ()
    """Evaluations of the flow head for each token of each step; empty: as its settings say."""
    cfg: tuple[float, ...] = ()
    """Guidance scale of each step; empty: not said."""

    @property
    def slots(self) -> int:
        """Cache slots the run needs."""
        return max(step.slot + self.inputs(index) for index, step in enumerate(self.steps))

    @property
    def groups(self) -> list[list[int]]:
        """The places each step draws."""
        return [list(step.group) for step in self.steps]

    def inputs(self, index: int) -> int:
        """How many inputs step `index` feeds, text included."""
        return len(self.steps[index].kinds) + (self.padded + self.start if index == 0 else 0)

    def places_before(self, index: int) -> list[int]:
        """The places whose latents are there when step `index` begins: those that are known, then in drawing order."""
        return [*self.known, *(place for step in self.steps[:index] for place in step.group)]

    def size(self, index: int) -> tuple[int, int, int, int]:
        """What step `index` has in common with others like it: inputs without text, tokens drawn, rows, flow steps."""
        step = self.steps[index]
        rows = self.rows[index] if self.rows else len(self.lengths)
        return len(step.kinds), len(step.group), rows, self.flow_steps[index] if self.flow_steps else 0

    @cached_property
    def recurring(self) -> set[tuple[int, int, int, int]]:
        """Sizes of steps that come up often enough to be captured or compiled."""
        counts = Counter(self.size(index) for index in range(1, len(self.steps)))
        return {size for size, count in counts.items() if count >= LEAST}

    def positions(self) -> Tensor:
        """int64 [rows, inputs of all steps one after the other]."""
        lengths = torch.tensor(self.lengths)[:, None]
        text = torch.minimum(torch.arange(self.padded), lengths - 1)
        columns = [text, lengths + torch.arange(self.start)]
        for step in self.steps:
            positions = torch.tensor(step.positions)[None]
            columns.append(positions + (lengths if step.relative else torch.zeros_like(lengths)))
        return torch.cat(columns, dim=1)

    def hides_padding(self, index: int) -> bool:
        """Whether step `index` must not see the padding of shorter texts."""
        return (index == 0 or self.isolated) and min(self.lengths) < self.padded

    def __str__(self) -> str:
        lines = []
        for index, step in enumerate(self.steps):
            mixes = self.mixes[index] if self.mixes else ()
            drawn = "; ".join("+".join(f"{weight:g}*prompt {row}" for row, weight in mix) for mix in mixes)
            line = f"step {index} {step}{' given' * (index < self.given)}{' from ' * bool(drawn)}{drawn}"
            line += f", cfg {self.cfg[index]:g}" if self.cfg else ""
            lines.append(line + (f", {self.flow_steps[index]} evaluations" if self.flow_steps else ""))
        return "\n".join(lines)


def visible(
    slots: Tensor, end: int, lengths: Tensor | None, queries: int, padded: Tensor | int | None = None
) -> Tensor:
    """What a step may see of the cache: bool [rows or 1, m, end].

    Args:
        slots: int64 [m], ascending: those that the step writes. No input sees a slot after its own.
        lengths: int64 [rows], text tokens of each row, where the rest up to the longest is hidden; None hides nothing.
        queries: how many of the last inputs do not see each other.
        padded: the longest, where it is not among `lengths`.
    """
    slot = torch.arange(end, device=slots.device)
    seen = slot <= slots[:, None]
    if queries > 1:
        seen = seen & ((slot < slots[-queries]) | (slot == slots[:, None]))
    if lengths is None:
        return seen[None]
    return seen & ~((slot >= lengths[:, None]) & (slot < (lengths.max() if padded is None else padded)))[:, None]


def group_sizes(tokens: int, tokens_per_step: int, grouping: str = "uniform") -> list[int]:
    """How many tokens each step draws.

    max(1, tokens // tokens_per_step) steps either way. "uniform": as even as can be, larger groups first (published).
    "cosine": growing, as in masked image models: after a share r of the steps, 1 - cos(r·π/2) is drawn.
    """
    if tokens_per_step < 1:
        raise ValueError(f"tokens_per_step is {tokens_per_step}; it must be at least 1.")
    if grouping not in GROUPINGS:
        raise ValueError(f"grouping is {grouping!r}; it must be one of {', '.join(GROUPINGS)}.")
    steps = max(1, tokens // tokens_per_step)
    if grouping == "uniform":
        return [tokens // steps + (index < tokens % steps) for index in range(steps)]
    ends, drawn = [], 0
    for index in range(1, steps + 1):
        ideal = round(tokens * (1 - math.cos(index / steps * math.pi / 2)))
        # at least one token a step, and enough left for the steps to come
        drawn = min(max(ideal, drawn + 1), tokens - (steps - index))
        ends.append(drawn)
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def cut_groups(order: Sequence[int], tokens_per_step: int, grouping: str = "uniform") -> list[tuple[int, ...]]:
    """Places in drawing order → the places that each step draws; see group_sizes."""
    groups, at = [], 0
    for size in group_sizes(len(order), tokens_per_step, grouping):
        groups.append(tuple(order[at : at + size]))
        at += size
    return groups


def make_plan(
    order: Sequence[int],
    tokens_per_step: int,
    *,
    lengths: Sequence[int],
    start: int,
    counts_padding: bool = False,
    known: Sequence[int] = (),
    given: int = 0,
    prompts: int = 1,
    mixes: Sequence[tuple[Mix, ...]] = (),
    rows: Sequence[int] = (),
    flow_steps: Sequence[int] = (),
    cfg: Sequence[float] = (),
    decoding: str = "published",
    grouping: str = "uniform",
    begun: Sequence[Step] = (),
) -> Plan:
    """Plan a run.

    Args:
        order: the places to draw, in drawing order; at least one.
        tokens_per_step: VGT's "acceleration".
        lengths: text tokens of each row.
        start: number of tokens of the text `<img>`.
        counts_padding: published decoding counts positions from the padded text instead of running on row by row.
        known: places whose latents are given, in feeding order; the first step feeds them as query and latent.
        given, prompts, mixes, rows, flow_steps, cfg: see Plan.
        begun: steps of an earlier run, with which this one begins whatever its own settings are.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"decoding is {decoding!r}; it must be one of {', '.join(DECODINGS)}.")
    groups = cut_groups(order, tokens_per_step, grouping)
    padded = max(lengths)
    isolated = decoding == "training-consistent"
    if isolated:
        steps = _consistent_steps(groups, padded, start, tuple(known), tuple(begun))
    else:
        growing = grouping != "uniform"
        form = tokens_per_step > 1, counts_padding, growing
        steps = _published_steps(groups, padded, start, tuple(known), *form, tuple(begun))
    steps = [*begun, *steps]
    return Plan(
        tuple(steps),
        tuple(lengths),
        padded,
        start,
        isolated,
        tuple(known),
        given,
        prompts,
        tuple(mixes),
        tuple(rows),
        tuple(flow_steps),
        tuple(cfg),
    )


def _pairs(places: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    """Kinds and places of tokens fed as in training: query, latent, query, latent …"""
    return (QUERY + LATENT) * len(places), tuple(place for place in places for _ in range(2))


def _published_steps(groups, padded, start, known, accelerated, counts_padding, growing, begun):
    if begun:
        last, again = begun[-1].group, len(begun[-1].group) > 1
        text = padded + start if len(begun) == 1 else 0
        slot = begun[-1].slot + text + len(begun[-1].kinds)
        fed = sum(len(step.kinds) for step in begun[1:])
        running = start + sum(len(step.kinds) for step in begun)
        growing = True  # the steps are of two sizes
    else:
        kinds, places = _pairs(known)
        last, *groups = groups
        inputs = len(kinds) + len(last)
        yield Step(kinds + QUERY * len(last), places + last, tuple(range(start, start + inputs)), True, 0, last)
        again, slot, fed, running = accelerated, padded + start + inputs, 0, start + inputs
    for index, group in enumerate(groups, start=len(begun) or 1):
        kinds, places = _pairs(last) if again else (LATENT * len(last), last)
        inputs = len(kinds) + len(group)
        fed += inputs
        offset = running
        if counts_padding:
            # Published: padded text + step · inputs of this step. Given tokens move it on as if they had been drawn;
            # for growing groups, where that product would leap, the inputs so far are summed.
            offset = padded + 2 * len(known) + (fed if growing else index * inputs)
        positions = tuple(range(offset, offset + inputs))
        yield Step(kinds + QUERY * len(group), places + group, positions, not counts_padding, slot, group)
        slot += inputs
        running += inputs
        last, again = group, accelerated


def _consistent_steps(groups, padded, start, known, begun):
    kinds, places = _pairs(known)
    at = start  # the next free position, counted from the end of the row's text; its slot is padded + at
    if begun:
        at = begun[-1].positions[-1] + 1
        kinds, places = _pairs(begun[-1].group)
        kinds, places = kinds[1:], places[1:]
    for index, group in enumerate(groups, start=len(begun)):
        slot = padded + at if index else 0
        positions = tuple(range(at, at + len(kinds)))
        at += len(kinds)
        yield Step(kinds + QUERY * len(group), places + group, positions + (at,) * len(group), True, slot, group)
        kinds, places = _pairs(group)
        kinds, places = kinds[1:], places[1:]  # the first query stays where it is
        at += 1
