"""The sequences of training: text, `<img>`, and query and latent of each token in turn."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..generation import Generator
from ..language_model import rotary_table
from ..prompt import TokenizedPrompts

LENGTH_STEP = 16
"""Texts are padded to multiples of this: kernels are made for a shape, and every length would be another one."""


def in_steps(text: TokenizedPrompts) -> TokenizedPrompts:
    """The same with more padding, which nothing sees: its length a multiple of LENGTH_STEP."""
    return replace(text, ids=F.pad(text.ids, (0, -text.ids.shape[1] % LENGTH_STEP)))


def query_states(
    generator: Generator, text: TokenizedPrompts, image_start: list[int], latents: Tensor, order: Tensor, grid
) -> Tensor:
    """What the language model says at each position query, in one causal pass.

    The sequence is `text <img> q₁ l₁ q₂ l₂ … q_T`, in a row's own order; padding is never seen, and positions run on.

    Args:
        latents: [B, T, 32] by token place, row-major.
        order: int64 [B, T], a permutation of the places for each row.
        grid: (height, width) of the image in tokens.

    Returns the hidden states after the final norm at q₁ … q_T, [B, T, D].
    """
    tokens, device = latents.shape[1], latents.device
    words = _words(generator, text, image_start, device)
    places, queries = generator.position_queries(*grid, device=device)
    ordered = latents.gather(1, order.unsqueeze(-1).expand_as(latents))
    embedded = generator.image_in_projector(ordered) + places[order]
    image = torch.stack((queries[order].to(embedded.dtype), embedded), dim=2).flatten(1, 2)[:, :-1]
    embeds = torch.cat((words.to(image.dtype), image), dim=1)
    positions, seen = positions_and_mask(text.lengths, text.ids.shape[1], embeds.shape[1], device)
    return _states(generator, embeds, positions, seen)[:, -2 * tokens + 1 :: 2]


def opening_states(generator: Generator, text: TokenizedPrompts, image_start: list[int], grid, device) -> Tensor:
    """What the language model says at `q₁` when nothing is drawn yet, for every place that may be the first.

    All are asked in one pass: a query sees `text <img>` and itself, and has the position of `q₁`.

    Returns the hidden states after the final norm, by token place, row-major: [B, T, D].
    """
    words = _words(generator, text, image_start, device)
    first = words.shape[1]
    queries = generator.position_queries(*grid, device=device)[1]
    embeds = torch.cat((words, queries.to(words.dtype).expand(len(words), -1, -1)), dim=1)
    positions, seen = positions_and_mask(text.lengths, text.ids.shape[1], embeds.shape[1], device)
    positions[:, first:] = positions[:, first : first + 1].clone()
    seen[:, :, first:, first:] = torch.eye(len(queries), dtype=torch.bool, device=device)
    return _states(generator, embeds, positions, seen)[:, first:]


def _words(generator: Generator, text: TokenizedPrompts, image_start: list[int], device) -> Tensor:
    start = torch.tensor(image_start).expand(len(text.ids), -1)
    return generator.language_model.embed_tokens(torch.cat((text.ids, start), dim=1).to(device))


def _states(generator: Generator, embeds: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
    rotary = tuple(part.to(embeds.dtype) for part in rotary_table(generator.config.language, positions))
    return generator.language_model(embeds, rotary, None, mask=seen)


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
