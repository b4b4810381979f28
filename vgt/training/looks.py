"""Gives words the look of what they name, before a generator learns.

A language model that has read and seen little knows words by their use alone; what each of a thousand names looks like,
a generator would have to learn for every name by itself. Here a part of each name's embedding is computed: the main
components of the latents of what it names. How to draw a component is then learnt from all pictures at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGE = 3.0
"""Captions' worth of doubt in the least squares: a word said a few times takes less of what it was said of."""
NAMES_FROM = 0.25
"""Mean square root of a word's components, each of variance 1 over the things, from which on it is taken for a name."""


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


def give_looks(embedding: Tensor, looks: Tensor, seed: int) -> Tensor:
    """An embedding [vocabulary, D] in which names have their looks [vocabulary, k] in k of the D dimensions.

    The dimensions are drawn by `seed`; other words, and the other dimensions of names, stay as they are.
    """
    rng = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(embedding.shape[1], looks.shape[1], generator=rng))[0]
    names = looks.square().mean(1).sqrt() > NAMES_FROM
    own = embedding[names]
    size = own.square().mean().sqrt()
    changed = embedding.clone()
    changed[names] = own - own @ axes @ axes.T + size * (looks[names] @ axes.T)
    return changed
