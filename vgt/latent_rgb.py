"""A picture of a latent without the decoder: each token's colour as a linear function of its 32 numbers.

For previews where the decoder has no room or is slow. A model file holds the matrix as `vgt.latent_rgb` in its
metadata: JSON, 33 rows of red, green and blue, one for each channel of the latent and the last what is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import LATENT_CHANNELS

ROWS = LATENT_CHANNELS + 1

LatentRGB = tuple[tuple[float, float, float], ...]
"""33 rows of three numbers."""


def colours(matrix: LatentRGB, latent: Tensor) -> Tensor:
    """latent [B, 32, h, w] → the colour of each token [B, 3, h, w], float32, about -1 to 1, not clamped."""
    table = torch.tensor(matrix, device=latent.device)
    channels = latent.float().movedim(1, -1)
    return (channels @ table[:-1] + table[-1]).movedim(-1, 1)


def fit(pairs: Iterable[tuple[Tensor, Tensor]]) -> LatentRGB:
    """The matrix by least squares over all tokens.

    pairs: latents [B, 32, h, w] as `Model.encode` gives them, and their pixels [B, 3, H, W] in [0, 1], of which a
    token's mean is the colour to meet. Raises ValueError where there are fewer tokens than rows.
    """
    products, wanted, count = torch.zeros(ROWS, ROWS).double(), torch.zeros(ROWS, 3).double(), 0
    for latent, pixels in pairs:
        means = F.adaptive_avg_pool2d(pixels.double().cpu() * 2 - 1, latent.shape[2:])
        tokens = latent.double().cpu().movedim(1, -1).flatten(0, 2)
        tokens = torch.cat((tokens, torch.ones(len(tokens), 1).double()), 1)
        products += tokens.T @ tokens
        wanted += tokens.T @ means.movedim(1, -1).flatten(0, 2)
        count += len(tokens)
    if count < ROWS:
        raise ValueError(f"There are {count} tokens in these pictures; give more, {ROWS} at least.")
    # A token's 32 numbers have mean 0, so one of them follows from the others: the smallest of the solutions.
    matrix = torch.linalg.lstsq(products, wanted, driver="gelsd").solution
    return tuple(tuple(round(value, 5) for value in row) for row in matrix.tolist())


def checked(value) -> LatentRGB:
    """What a file holds, as a matrix. Raises ValueError where it is none."""
    rows = value if isinstance(value, list) else ()
    numbers = [number for row in rows if isinstance(row, list) and len(row) == 3 for number in row]
    if len(rows) != ROWS or len(numbers) != 3 * ROWS:
        raise ValueError(f"it is not {ROWS} rows of three numbers")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise ValueError("not all of it are finite numbers")
    return tuple(tuple(float(number) for number in row) for row in rows)


def add_to_file(model: Path, pictures: Path, out: Path) -> int:
    """Write the model in the file or folder `model` to `out`, with a matrix fitted on the pictures in a folder.

    Returns how many pictures there were. Raises what read_checkpoint, save_checkpoint, read_picture and fit raise.
    """
    from dataclasses import replace

    from .files.reading import read_checkpoint
    from .files.single_file import save_checkpoint
    from .model import load
    from .picture_files import FORMATS, read_picture, whole_tokens

    checkpoint, loaded = read_checkpoint(model), load(model)
    paths = sorted(path for path in pictures.iterdir() if path.suffix.lower() in FORMATS)

    def pairs():
        for path in paths:
            pixels = whole_tokens(read_picture(path), loaded.config.token_pixels, path)
            yield loaded.encode(pixels), pixels

    save_checkpoint(replace(checkpoint, latent_rgb=fit(pairs())), out)
    return len(paths)
