"""Draws many pictures for a score: in batches, each with a seed of its own, shared between processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..files.fingerprint import fingerprint
from ..run.generation import draw_noise
from ..sampling import SamplingSettings

BLOCK = 64
"""Pictures that are drawn in the same order of tokens; a batch stays within a block."""
BATCH = 16
"""Pictures drawn together unless one says otherwise. In published decoding the padding of a batch is seen, so it bears
on the pictures."""


def draw(model, prompts: Sequence[str], numbers: Sequence[int], settings: SamplingSettings) -> Tensor:
    """Draw prompts, given the number of each in the whole run → [B, 3, H, W] in [0, 1], float32, on the CPU.

    A picture's noise depends on its number and the seed alone. All are drawn in the token order of the first's block.
    The settings are complete ones.
    """
    tokens = settings.height * settings.width // model.config.token_pixels**2
    noise = [draw_noise(picture_seed(settings.seed, number), [0], tokens, settings.flow.steps) for number in numbers]
    own = replace(settings, order_seed=picture_seed(settings.seed, numbers[0] // BLOCK))
    latent = model.generate(prompts, noise=torch.cat(noise), **vars(own))
    return ((model.decode(latent) + 1) / 2).clamp(0, 1).cpu()


def picture_seed(seed: int, number: int) -> int:
    """Give the number-th picture its seed; those of different runs do not meet."""
    return seed * 1_000_003 + number


def batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Cut numbers (rising) into batches of `size` at the most, none of which crosses a block.

    Raises ValueError for a size below 1 or above a block's.
    """
    if not 1 <= size <= BLOCK:
        raise ValueError(f"batch is {size}; it must lie between 1 and {BLOCK}.")
    batch: list[int] = []
    for number in numbers:
        if batch and (len(batch) == size or number // BLOCK != batch[0] // BLOCK):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def process() -> tuple[int, int]:
    """Tell which process this is: (rank, number of processes), as torchrun says.

    The processes share nothing but the folder they write to.
    """
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def to_image(pixels: Tensor):
    """Make a PIL image of pixels [3, H, W] in [0, 1]."""
    from PIL import Image

    return Image.fromarray((pixels * 255).round().byte().movedim(0, -1).numpy())


def write_whole(path: Path, write) -> None:
    """Call `write(path)`, under another name until all of it is written: a file that is there is whole.

    The other name begins with a dot, which none of the official scorers takes for a picture of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name("." + path.name)
    write(unfinished)
    unfinished.replace(path)


def weights_of(model) -> str:
    """Hash a model's weights, to tell models apart whatever their files are called: 16 hexadecimal digits."""
    parts = {"autoencoder": model.autoencoder, "generator": model.generator}
    return fingerprint({f"{at}.{k}": v for at, part in parts.items() for k, v in part.state_dict().items()})[:16]


def check_same_run(folder: Path, settings: SamplingSettings, model, prompts: Sequence[str]) -> None:
    """Note beside the folder how its pictures are drawn. ValueError if it holds some that were drawn otherwise."""
    note = folder.with_name(folder.name + ".settings.json")
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    now = {**settings.to_dict(), "weights": weights_of(model), "prompts": digest}
    if note.exists():
        before = json.loads(note.read_text(encoding="utf-8"))
        other = [name for name in now if before.get(name) != now[name]]
        if other:
            told = ", ".join(f"{name} {before.get(name)}" for name in other)
            raise ValueError(f"{folder} holds pictures of another run ({told}); settle on that or on another folder.")
    note.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own a process: several may write this at once.
    unfinished = note.with_name(f".{note.name}.{process()[0]}")
    unfinished.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(note)
