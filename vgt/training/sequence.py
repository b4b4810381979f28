"""Lays out the sequences of training: text, `<img>`, and query and latent of each token in turn."""

from __future__ import annotations

from dataclasses import replace

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


def query_states(
    generator: Generator, text: TokenizedPrompts, image_start: list[int], latents: Tensor, order: Tensor, grid
) -> Tensor:
    """Run the language model over whole pictures in one causal pass: what it says at each position query.

    The sequence is `text <img> q₁ l₁ q₂ l₂ … q_T`, in a row's own order; padding is never seen, and positions run on.

    Args:
        latents: [B, T, 32] by token place, row-major.
        order: int64 [B, T], a permutation of the places for each row.
        grid: (height, width) of the image in tokens.

    Returns the hidden states after the final norm at q₁ … q_T, [B, T, D].
    """
    tokens, device = latents.shape[1], latents.device
    words = _words(generator, text, image_start, device)
    image = _image(generator, latents, order, grid)[:, :-1]
    embeds = torch.cat((words.to(image.dtype), image), dim=1)
    positions, seen = positions_and_mask(text.lengths, text.ids.shape[1], embeds.shape[1], device)
    return _states(generator, embeds, positions, seen)[:, -2 * tokens + 1 :: 2]


def next_states(
    generator: Generator,
    text: TokenizedPrompts,
    image_start: list[int],
    latents: Tensor,
    order: Tensor,
    drawn: int,
    grid,
) -> Tensor:
    """Run the language model for the next token: what it says at `q` after `drawn` others, for each place it may be at.

    Arguments as for `next_inputs`. Returns the hidden states after the final norm for the places order[:, drawn:],
    [B, T - drawn, D].
    """
    embeds, positions, seen, first = next_inputs(generator, text, image_start, latents, order, drawn, grid)
    return _states(generator, embeds, positions, seen)[:, first:]


def next_inputs(
    generator: Generator,
    text: TokenizedPrompts,
    image_start: list[int],
    latents: Tensor,
    order: Tensor,
    drawn: int,
    grid,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """What the language model reads to be asked for the next token, at each place that it may be at.

    All are asked in one pass after `text <img> q₁ l₁ … q_drawn l_drawn`: each query sees that and itself, and has the
    position of the next. Arguments as for `query_states`.

    Returns the inputs [B, n, D], their positions, what each sees (see `positions_and_mask`), and the number of the
    first query, that of order[:, drawn].
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
    return embeds, positions, seen, first


def _image(generator: Generator, latents: Tensor, order: Tensor, grid) -> Tensor:
    """Put query and latent of each place of `order` in turn, [B, 2 N, D]."""
    places, queries = generator.position_queries(*grid, device=latents.device)
    ordered = torch.take_along_dim(latents, order[..., None], 1)
    embedded = generator.image_in_projector(ordered) + places[order]
    return torch.stack((queries[order].to(embedded.dtype), embedded), dim=2).flatten(1, 2)


def _words(generator: Generator, text: TokenizedPrompts, image_start: list[int], device) -> Tensor:
    start = torch.tensor(image_start).expand(len(text.ids), -1)
    return generator.language_model.embed_tokens(torch.cat((text.ids, start), dim=1).to(device))


def _states(generator: Generator, embeds: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
    rotary = generator.language_model.rotary(positions, embeds.dtype)
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
