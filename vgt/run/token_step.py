"""One step of a run: inputs through the language model, then the group's latents out of the flow head.

All it needs lies on the device before the run begins, so nothing in it waits for the host, and on CUDA a step can be
replayed as a graph (graphs.py): what differs from step to step is in tensors of a fixed shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..networks.attention import decodes_with_flash
from ..networks.autoencoder import channel_norm
from ..networks.language_model import KVCache, LanguageModel, run_layer
from .compiled import compiled, lies_on
from .flow import FlowSampler, Mixture
from .plan import LATENT, QUERY, Plan, visible

SLOT_STEP = 128


def shared_slots(slots: int) -> int:
    """How long a cache of graphs or compiled layers is, so that prompts of different lengths share them."""
    return -(-slots // SLOT_STEP) * SLOT_STEP


@dataclass
class StepInputs:
    """What one step feeds; m inputs, text not counted, n of them latents, and a group of g tokens."""

    embeddings: Tensor
    """int64 [m]: rows of the run's table of places and queries."""
    columns: Tensor
    """int64 [n]: which of the m inputs are latents."""
    places: Tensor
    """int64 [n]: their token places."""
    group: Tensor
    """int64 [g]: the token places that are drawn."""
    cos: Tensor
    """[rows, 1, m, head_width], with text in the first step; so is `sin`."""
    sin: Tensor
    slots: Tensor
    """int64 [m]: the cache slots that are written, with text in the first step."""
    cfg: Tensor
    """float32 []: guidance scale."""
    sources: Tensor
    """int64 [n]: with several prompts, what the tokens are drawn from, as prompt * g + token of the group; else [0]."""
    owners: Tensor
    """int64 [n]: which token of the group each source is of."""
    weights: Tensor
    """float32 [n]: its weight."""
    flow_steps: int
    """Evaluations of the flow head; 0: as its settings say."""

    @property
    def rows(self) -> int:
        """Rows that the step feeds: all, or the conditional ones alone, which come first."""
        return len(self.cos)

    @property
    def size(self) -> tuple[int, int, int, int]:
        """As Plan.size."""
        return len(self.embeddings), len(self.group), self.rows, self.flow_steps

    def tensors(self) -> list[Tensor]:
        return [value for value in vars(self).values() if isinstance(value, Tensor)]


@dataclass
class RunTensors:
    """What all steps of a run share, beside the cache."""

    table: Tensor
    """[2 * T, D]: what is added to a latent at each place, then the query for each place."""
    noise: Tensor
    """float32 [B, T, steps, 32]."""
    latents: Tensor
    """float32 [B, T, 32], filled in as the run goes on."""
    lengths: Tensor
    """int64 [rows]: text tokens of each row."""
    spread: Tensor
    """float32 [B, T], filled in, or [B, 0] where nobody asks: see RunRecord."""


def step_inputs(plan: Plan, language_model, dtype: torch.dtype, device) -> list[StepInputs]:
    """Upload a whole plan, which says the guidance scales, at once and cut it into steps."""
    cos, sin = language_model.rotary(plan.positions().to(device), dtype)
    tokens = sum(len(group) for group in plan.groups) + len(plan.known)
    steps = plan.steps
    rows = [[place + tokens * (kind == QUERY) for kind, place in zip(step.kinds, step.places)] for step in steps]
    columns = [[column for column, kind in enumerate(step.kinds) if kind == LATENT] for step in steps]
    places = [[step.places[column] for column in columns[index]] for index, step in enumerate(steps)]
    counts = [plan.inputs(index) for index in range(len(steps))]
    slots = [range(step.slot, step.slot + count) for step, count in zip(steps, counts)]
    lists = (rows, columns, places, plan.groups, slots)
    cut = [_upload(one, device) for one in lists]
    fed = plan.rows or [len(plan.lengths)] * len(steps)
    spans = [
        (c[:rows], s[:rows]) for c, s, rows in zip(cos.split(counts, dim=2), sin.split(counts, dim=2), fed, strict=True)
    ]
    flow_steps = plan.flow_steps or [0] * len(steps)
    cfg = torch.tensor(plan.cfg).to(device).unbind()
    mixes = zip(*_mixes(plan, device))
    return [
        StepInputs(e, c, p, g, *span, s, scale, *mix, flow)
        for e, c, p, g, s, span, scale, mix, flow in zip(*cut, spans, cfg, mixes, flow_steps, strict=True)
    ]


def _mixes(plan: Plan, device) -> tuple:
    """Sources, owners and weights of each step; empty tensors where there is one prompt."""
    mixes = plan.mixes or [()] * len(plan.steps)
    flat = [[(row * len(mix) + token, token, w) for token, one in enumerate(mix) for row, w in one] for mix in mixes]
    sources, owners, weights = ([[entry[part] for entry in one] for one in flat] for part in range(3))
    counts = [len(one) for one in weights]
    weights = torch.tensor([weight for one in weights for weight in one], dtype=torch.float32).to(device)
    return _upload(sources, device), _upload(owners, device), weights.split(counts)


def _upload(lists: list, device) -> Iterator[Tensor]:
    flat = torch.tensor([number for one in lists for number in one], dtype=torch.int64)
    return flat.to(device).split([len(one) for one in lists])


def _compiles(language, device: torch.device) -> bool:
    return isinstance(language, LanguageModel) and lies_on(language.layers, device)


class TokenStep:
    """Does steps of a run; see the module's docstring."""

    def __init__(self, generator, plan: Plan, sampler: FlowSampler, run: RunTensors, compile: bool = False):
        """compile: the layers of a LanguageModel, where they lie on the device, for steps of a size that recurs."""
        self.generator, self.plan, self.sampler, self.run = generator, plan, sampler, run
        self.cache: KVCache | None = None
        language, table = generator.language_model, run.table
        self.run_layer = compiled(run_layer) if compile and _compiles(language, table.device) else None
        self.flash = (
            self.run_layer is None
            and not plan.isolated  # then nothing but the future is hidden, once the text is read
            and isinstance(language, LanguageModel)
            and decodes_with_flash(table.device, table.dtype, language.config.head_width)
        )

    def allocate(self, slots: int) -> None:
        """Make the cache; the run's steps need `plan.slots` at least."""
        if self.run_layer:  # which is compiled for each length of a cache
            slots = shared_slots(slots)
        language, table = self.generator.config.language, self.run.table
        self.cache = KVCache(language, len(self.run.lengths), slots, table.device, table.dtype)

    def tensors(self) -> list[Tensor]:
        """All that differs from run to run."""
        return [*vars(self.run).values(), *self.sampler.tensors()]

    def first(self, step: StepInputs, text: Tensor) -> None:
        """The first step, which feeds text [rows, text tokens, D] before all else."""
        self._do(step, torch.cat((text, self._embed(step)), dim=1), 0, hides_padding=self.plan.hides_padding(0))

    def __call__(self, step: StepInputs, slot: int | None = None) -> None:
        """Feed a step, and write the latents of its group into the run's.

        slot: the first of the step's slots as a number: it sees the cache up to its last one. None: it sees the whole
        cache under a mask, so that no shape depends on how far the run is.
        """
        if self.run_layer and step.size in self.plan.recurring:
            slot = None
        self._do(step, self._embed(step), slot, hides_padding=self.plan.hides_padding(1))

    def read(self, step: StepInputs, slot: int) -> None:
        """Feed a step whose group's latents are given: nothing is drawn."""
        self._hidden(step, self._embed(step), slot, self.plan.hides_padding(1))

    def read_first(self, step: StepInputs, text: Tensor) -> None:
        """As `read`, for the first step."""
        self._hidden(step, torch.cat((text, self._embed(step)), dim=1), 0, self.plan.hides_padding(0))

    def _hidden(self, step: StepInputs, embeds: Tensor, slot: int | None, hides_padding: bool) -> Tensor:
        """Hidden states [rows, m, D] of a step's inputs, whose keys and values are in the cache thereafter."""
        generator, run = self.generator, self.run
        if self.flash and slot != 0:
            return generator.language_model(embeds, (step.cos, step.sin), self.cache, step.slots)
        queries = len(step.group) if self.plan.isolated else 0
        mask = None
        if slot is None or hides_padding or queries > 1:
            end = self.cache.slots if slot is None else slot + embeds.shape[1]
            lengths = run.lengths[: step.rows] if hides_padding else None
            mask = visible(step.slots, end, lengths, queries, run.lengths.max())[:, None]
        where = step.slots if slot is None else slot
        given = embeds, (step.cos, step.sin), self.cache, where, mask
        if slot is None and self.run_layer:
            return generator.language_model(*given, self.run_layer)
        return generator.language_model(*given)

    def _do(self, step: StepInputs, embeds: Tensor, slot: int | None, hides_padding: bool) -> None:
        run, tokens = self.run, len(step.group)
        hidden = self._hidden(step, embeds, slot, hides_padding)
        condition = self.generator.image_out_projector(hidden[:, -tokens:])
        noise = run.noise.index_select(1, step.group)
        images = len(noise)
        mixture = None
        if self.plan.prompts == 1:
            condition, noise = condition.flatten(0, 1), noise.flatten(0, 1)
        else:
            condition, mixture = self._mixed(step, condition, images)
            noise = noise.transpose(0, 1).flatten(0, 1)
        drawn = channel_norm(self.sampler(condition, noise, step.cfg, mixture, step.flow_steps), -1)
        filled = [(run.latents, drawn)]
        if run.spread.numel():
            filled.append((run.spread, (1 - self.sampler.expected.square().mean(-1)).clamp(0, 1)))
        for whole, part in filled:
            if mixture is None:
                part = part.unflatten(0, (images, tokens))
            else:
                part = part.unflatten(0, (tokens, images)).transpose(0, 1)
            whole.index_copy_(1, step.group, part)

    def _mixed(self, step: StepInputs, condition: Tensor, images: int) -> tuple[Tensor, Mixture]:
        """Conditions [rows, g, D] → those that tokens are drawn from, then the unconditional ones, [.. * images, D]."""
        by_prompt = condition.unflatten(0, (-1, images)).transpose(1, 2)  # prompts (and none), g, images, D
        prompts = self.plan.prompts
        sources = by_prompt[:prompts].flatten(0, 1).index_select(0, step.sources)
        rows = torch.cat((sources, *by_prompt[prompts:]))
        return rows.flatten(0, 1), Mixture(step.owners, step.weights, len(step.group))

    def _embed(self, step: StepInputs) -> Tensor:
        """[rows, m, D]: queries, and latents with the embedding of their place."""
        run, rows = self.run, step.rows
        embeds = run.table.index_select(0, step.embeddings).repeat(rows, 1, 1)
        if len(step.columns):
            latents = run.latents.index_select(1, step.places).to(embeds.dtype)
            projected = self.generator.image_in_projector(latents).repeat(rows // len(latents), 1, 1)
            embeds.index_add_(1, step.columns, projected)
        return embeds
