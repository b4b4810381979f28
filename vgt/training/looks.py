"""Gives names the look of what they name, and queries a way to read it, before a generator learns.

A language model that has read and seen little knows words by their use alone. A generator would have to learn what each
of a thousand names looks like, one by one. Here a part of each name's embedding is computed: the main components of the
latents of what it names. How to draw a component is then learnt from all pictures at once.

Queries must also see it. Attention that picks out names is slow to form. And the first layer of VGT-Drawings' captioner
writes a hundred times what an embedding brings, so that later layers see no names. So some of the second layer's heads
begin by bringing queries the sum of a caption's looks, and all layers write less. The second layer's: so the first can
tell names by what stands before them, and a place can come to ask for one of two (layout.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import LanguageModelConfig
from ..networks.language_model import LanguageModel
from ..run.generation import Generator
from .settings import TrainingError

RIDGE = 3.0
"""Weight of the penalty in the least squares, in captions: a word that was said a few times takes less."""
NAMES_FROM = 0.25
"""A word is a name from this root mean square of its components on; over the things each has variance 1."""
READER = 1
"""The layer whose heads bring looks to queries."""
NAME, FIRST = 5.0, 7.5
"""Attention's scores, before the softmax, of a name and of a prompt's first token. The first token takes most of the
weight, so that names add up; they would be averaged without it."""
NAME_LEVEL = NAME - FIRST
_MARKERS = 3
"""Dimensions that mark names, the first token, and queries."""
_MARK = 1 / 3
"""The part of a name's embedding, in length, that says that it is a name; its look takes 8/9 at most."""
_FAINT = 0.2
"""What is left of the heads that the sum takes."""


def components(looks: Tensor, count: int) -> Tensor:
    """The main components of looks [N, F], each of mean 0 and mean square 1: [N, count]."""
    looks = looks.float()
    left, _, _ = torch.linalg.svd(looks - looks.mean(0), full_matrices=False)
    return left[:, :count] * len(looks) ** 0.5


def word_looks(codes: Tensor, captions: Sequence[Sequence[Sequence[int]]], vocabulary: int) -> Tensor:
    """What each token of a vocabulary tells of a thing's components, so that a caption's tokens add up to them.

    codes: [N, k]; captions: of each of the N things some captions, as token ids. Returns [vocabulary, k], 0 for tokens
    that no caption holds. Least squares over all captions, each token counted once in a caption.
    """
    products, wanted = torch.zeros(vocabulary, vocabulary), torch.zeros(vocabulary, codes.shape[1])
    for code, texts in zip(codes, captions, strict=True):
        for text in texts:
            said = torch.tensor(sorted(set(text)))
            products[said[:, None], said] += 1
            wanted[said] += code
    return torch.linalg.solve(products + RIDGE * torch.eye(vocabulary), wanted)


def check_looks(count: int, config: LanguageModelConfig) -> None:
    """Raise TrainingError where a language model cannot carry so many components."""
    if config.qk_norm or not config.qkv_bias or config.depth <= READER:
        raise TrainingError(
            f"layout.looks is for a language model of {READER + 1} layers and more whose queries have a bias, as "
            "Qwen2.5's."
        )
    most = min(config.kv_heads * config.head_width, config.width - _MARKERS)
    if count > most:
        raise TrainingError(
            f"layout.looks is {count}; the base's key/value heads ({config.kv_heads} of {config.head_width} "
            f"numbers) and its width of {config.width} carry {most}."
        )


@torch.no_grad()
def give_looks(generator: Generator, looks: Tensor, first: int, seed: int) -> None:
    """Put looks [vocabulary, k] into a generator: into its words, and heads of its second layer bring them to queries.

    first: the token that every prompt begins with. The k + 3 dimensions that this takes are drawn by `seed`; words that
    are no names, queries, latents and the layers before leave them free.
    """
    model = generator.language_model
    width, count = model.config.width, looks.shape[1]
    rng = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(width, count + _MARKERS, generator=rng))[0]
    look_axes, (name_axis, first_axis, query_axis) = axes[:, :count], axes[:, count:].T
    length = math.sqrt(width) / 2  # of a name's embedding
    _quieten(model, 2 * length)
    words = _free(model.embed_tokens.weight.float(), axes)
    words *= length / 2 / words.norm(dim=1).mean()

    names = are_names(looks)
    longest = length * 8 / 9
    told = looks[names] * longest / looks[names].norm(dim=1).quantile(0.95)
    told *= (longest / told.norm(dim=1, keepdim=True)).clamp(max=1)
    mark = length * _MARK
    rest = (length**2 - mark**2 - told.square().sum(1, keepdim=True)).sqrt()
    own = torch.nn.functional.normalize(words[names], dim=1) * rest
    words[names] = own + mark * name_axis + told @ look_axes.T
    words[first] = torch.nn.functional.normalize(words[first], dim=0) * length * 2 / 3 + length / 2 * first_axis
    model.embed_tokens.weight.copy_(words)

    _make_room(generator, axes, length * _MARK * query_axis)

    def along(embeddings, axis):
        """The axis, in units of what embeddings have along it, after a first token, when the reader normalises them."""
        x = torch.stack((words[first].expand_as(embeddings), embeddings), dim=1)
        x = torch.nn.functional.rms_norm(_after(x, model, READER)[:, 1], (width,))
        return axis / (x @ axis).median()

    queries = generator.position_queries(*generator.position_queries.grid)[1]
    keys = NAME * along(words[names], name_axis), FIRST * along(words[first, None], first_axis)
    _sum_names(model, along(queries, query_axis), *keys, look_axes)


def are_names(looks: Tensor) -> Tensor:
    """Which words of looks [vocabulary, k] are names: bool [vocabulary]."""
    return looks.square().mean(1).sqrt() > NAMES_FROM


def _make_room(generator: Generator, axes: Tensor, query: Tensor) -> None:
    """Let queries, latents and the layers before the reader leave axes [D, k] free, but for `query` in each query."""
    places = generator.position_queries
    for grid in (places.queries, places.positions):
        grid.copy_(_free(grid.movedim(1, -1), axes).movedim(-1, 1))
        grid *= 0.25 / grid.square().mean().sqrt()
    places.queries += query[:, None, None]
    projector = generator.image_in_projector
    projector.weight.copy_(_free(projector.weight.T, axes).T)
    projector.weight *= 0.5 / projector.weight.square().sum(1).mean().sqrt()
    projector.bias.copy_(_free(projector.bias, axes))

    for layer in generator.language_model.layers[:READER]:
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.copy_(_free(weight.T, axes).T)


def _free(x: Tensor, axes: Tensor) -> Tensor:
    """x [..., D] without what lies along axes [D, k]."""
    return x - x @ axes @ axes.T


def _quieten(model: LanguageModel, length: float) -> None:
    """Let every layer write less, by one factor, so that the first adds about `length` to a word."""
    words = model.embed_tokens.weight.float()
    added = _after(words[:, None], model, 1)[:, 0] - words
    factor = min(1.0, length / added.norm(dim=-1).mean().item())
    for layer in model.layers:
        layer.self_attn.o_proj.weight *= factor
        layer.mlp.down_proj.weight *= factor


def _after(x: Tensor, model: LanguageModel, layers: int) -> Tensor:
    """What the first layers make of inputs [B, n, D]."""
    rotary = model.rotary(torch.arange(x.shape[1], device=x.device).expand(len(x), -1), x.dtype)
    for layer in model.layers[:layers]:
        x = layer(x, *rotary, None, 0, None, None)
    return x


def _sum_names(model: LanguageModel, query: Tensor, name: Tensor, first: Tensor, look_axes: Tensor) -> None:
    """Make heads of the reading layer carry the looks, a slice each.

    Where `query` [D] reads 1, they attend to `name`; everywhere to `first`, which brings nothing. Only the two slowest
    of the rotary frequencies take part: over a prompt and a picture they turn by next to nothing.
    """
    config, layer = model.config, model.layers[READER]
    head_width, attention = config.head_width, layer.self_attn
    norm = layer.input_layernorm.weight
    half = head_width // 2
    slow = half - 1
    query_rows, key_rows, value_rows = attention.qkv_proj.weight.split(
        [count * head_width for count in attention.splits]
    )
    query_bias, key_bias, value_bias = attention.qkv_proj.bias.split([len(query_rows), len(key_rows), len(value_rows)])
    scale = math.sqrt(head_width)
    weight = 1 / (1 + math.exp(FIRST - NAME))  # of a caption's only name
    gain = 0.5 / weight  # an embedding is twice as long when it is normalised
    for number, carried in enumerate(look_axes.split(head_width, dim=1)):
        head = number * (config.heads // config.kv_heads)
        asks, keys = (slice(n * head_width, (n + 1) * head_width) for n in (head, number))
        values = slice(keys.start, keys.start + carried.shape[1])
        for rows in (query_rows[asks], query_bias[asks], key_rows[keys], key_bias[keys]):
            rows *= _FAINT
            rows[[slow - 1, slow, half + slow - 1, half + slow]] = 0
        query_rows[asks][slow] = scale * query / norm
        query_bias[asks][slow - 1] = scale
        key_rows[keys][slow] = name / norm
        key_rows[keys][slow - 1] = first / norm
        value_rows[values] = carried.T / norm
        value_bias[values] = 0
        read = slice(asks.start, asks.start + carried.shape[1])
        attention.o_proj.weight[:, read] = gain * carried
