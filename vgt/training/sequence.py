"""Lays out the sequences of training: text, `<img>`, and query and latent of each token in turn."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prompt import TokenizedPrompts
from ..run.generation import Generator

LENGTH_STEP = 16
"""Texts are padded to multiples of this: kernels are made for a shape, and every length would be another one."""


def in_steps(text: TokenizedPrompts) -> TokenizedPrompts:
    """Add padding, which nothing sees, to prompts: their length a multiple of LENGTH_STEP."""
    return replace(text, ids=F.pad(text.ids, (0, -text.ids.shape[1] % LENGTH_STEP)))


class Inputs(NamedTuple):
    """What the language model reads in one pass."""

    embeds: Tensor
    """[B, n, D]"""
    positions: Tensor
    """int64 [B, n]"""
    seen: Tensor
    """bool [B, 1, n, n]: what each input sees."""
    asked: slice
    """The position queries whose answers are wanted, among the n."""


def states(generator: Generator, inputs: Inputs) -> Tensor:
    """Run the language model: its hidden states after the final norm at the queries asked, [B, asked, D]."""
    rotary = generator.language_model.rotary(inputs.positions, inputs.embeds.dtype)
    return generator.language_model(inputs.embeds, rotary, None, mask=inputs.seen)[:, inputs.asked]


def query_inputs(
    generator: Generator, text: TokenizedPrompts, image_start: list[int], latents: Tensor, order: Tensor, grid
) -> Inputs:
    """Lay out whole pictures for one causal pass that asks at each position query.

    The sequence is `text <img> q₁ l₁ q₂ l₂ … q_T`, in a row's own order; padding is never seen, and positions run on.

    Args:
        latents: [B, T, 32] by token place, row-major.
        order: int64 [B, T], a permutation of the places for each row.
        grid: (height, width) of the image in tokens.

    Asked are q₁ … q_T.
    """
    tokens, device = latents.shape[1], latents.device
    words = _words(generator, text, image_start, device)
    image = _image(generator, latents, order, grid)[:, :-1]
    embeds = torch.cat((words.to(image.dtype), image), dim=1)
    positions, seen = positions_and_mask(text.lengths, text.ids.shape[1], embeds.shape[1], device)
    return Inputs(embeds, positions, seen, slice(-2 * tokens + 1, None, 2))


def next_inputs(
    generator: Generator,
    text: TokenizedPrompts,
    image_start: list[int],
    latents: Tensor,
    order: Tensor,
    drawn: int,
    grid,
) -> Inputs:
    """Lay out pictures of which `drawn` tokens are there, to ask for the next one at each place that it may be at.

    All are asked in one pass after `text <img> q₁ l₁ … q_drawn l_drawn`: each query sees that and itself, and has the
    position of the next. Arguments as for `query_inputs`; asked are the places order[:, drawn:].
    """
    device = latents.device
    words = _words(generator, text, image_start, device)
    known = _image(generator, latents, order[:, :drawn], grid)
    queries = generator.position_queries(*grid, device=device)[1][order[:, drawn:]]
    embeds = torch.cat((words.to(known.dtype), known, queries.to(known.dtype)), dim=1)
    positions, seen = positions_and_mask(text.lengths, text.ids.shape[1], embeds.shape[1], device)
    first = words.shape[1] + known.shape[1]
    positions[:, first:] = positions[:, first : first + 1].clone()
    seen[:, :, first:, first:] = torch.eye(queries.shape[1], dtype=torch.bool, device=device)
    return Inputs(embeds, positions, seen, slice(first, None))


def _image(generator: Generator, latents: Tensor, order: Tensor, grid) -> Tensor:
    """Put query and latent of each place of `order` in turn, [B, 2 N, D]."""
    places, queries = generator.position_queries(*grid, device=latents.device)
    ordered = torch.take_along_dim(latents, order[..., None], 1)
    embedded = generator.image_in_projector(ordered) + places[order]
    return torch.stack((queries[order].to(embedded.dtype), embedded), dim=2).flatten(1, 2)


def _words(generator: Generator, text: TokenizedPrompts, image_start: list[int], device) -> Tensor:
    start = torch.tensor(image_start).expand(len(text.ids), -1)
    return generator.language_model.embed_tokens(torch.cat((text.ids, start), dim=1).to(device))


def positions_and_mask(lengths, padded: int, inputs: int, device) -> tuple[Tensor, Tensor]:
    """Positions int64 [B, inputs] that run on without the padding, and what is seen, bool [B, 1, inputs, inputs].

    lengths: of the rows' texts, which are right-padded to `padded`.
    """
    lengths = torch.tensor(lengths, device=device)[:, None]
    slot = torch.arange(inputs, device=device)
    real = (slot < lengths) | (slot >= padded)
    positions = real.long().cumsum(1) - 1
    seen = (slot <= slot[:, None]) & real[:, None]
    return positions, seen[:, None]
