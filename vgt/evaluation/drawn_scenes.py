"""Scores a model on scenes of drawings: prompts with held-out combinations, drawn by it and told by the recogniser."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..sampling import SamplingSettings
from ..scenes.drawings import CATEGORIES, Drawings, render, sample
from ..scenes.recogniser import Recogniser, look
from ..scenes.world import Request, to_pixels
from .drawing import BATCH, to_image
from .scenes import drawn

PROMPT_SEED = "drawings score"


def prompts(drawings: Drawings, count: int, split: str = "test") -> list[tuple[Request, str]]:
    """List the first `count` prompts, the categories in turn: (meaning, caption). They are always the same."""
    return [(scene.request, caption) for scene, caption in _scenes(drawings, count, split)]


def score(
    model,
    drawings: Drawings,
    count: int,
    settings: SamplingSettings,
    *,
    split: str = "test",
    folder: Path | None = None,
    batch: int = BATCH,
    recogniser: Recogniser | None = None,
) -> dict:
    """Draw `count` prompts and judge the pictures.

    Arguments as for `scenes.score`, and recogniser: one of these drawings, kept from an earlier score, since it takes
    minutes to describe them all. Returns the same, and "top5" in each category: the share that is right where a
    thing need only be among the five that it looks most like. Raises ValueError for fewer prompts than categories.
    """
    if count < len(CATEGORIES):
        raise ValueError(f"count is {count}; it must be at least {len(CATEGORIES)}, one prompt a category.")
    asked = prompts(drawings, count, split)
    recogniser, pictures = recogniser or Recogniser(drawings), []
    with tqdm(total=count, unit="picture") as bar:
        for number, pixels in drawn(model, asked, settings, batch):
            pictures.append(_judged(recogniser, *asked[number], pixels))
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                to_image(pixels).save(folder / f"{number:04}-{'wrong' if pictures[-1]['wrong'] else 'right'}.png")
            bar.update()
    return {
        "kind": "drawings",
        "count": count,
        "split": split,
        "settings": {**settings.to_dict(), "batch": batch},
        **_summary(pictures),
        "pictures": pictures,
    }


def drawing_images(drawings: Drawings, count: int, size: int) -> Iterator[Tensor]:
    """Render the scenes that `reconstructed` judges: [3, size, size] in [0, 1]."""
    return (to_pixels(render(drawings, scene, size)) for scene, _ in _scenes(drawings, count, "test"))


def reconstructed(model, drawings: Drawings, count: int, size: int, batch: int = BATCH) -> dict:
    """Judge true renders that went through the tokenizer and back: what its loss costs the score, as `score` has it."""
    recogniser, pictures, scenes = Recogniser(drawings), [], _scenes(drawings, count, "test")
    for start in tqdm(range(0, count, batch), unit="batch"):
        some = scenes[start : start + batch]
        pixels = torch.stack([to_pixels(render(drawings, scene, size)) for scene, _ in some])
        rebuilt = ((model.decode(model.encode(pixels)) + 1) / 2).clamp(0, 1).cpu()
        pictures += [_judged(recogniser, scene.request, text, one) for (scene, text), one in zip(some, rebuilt)]
    return {"kind": "drawings reconstructed", "count": count, **_summary(pictures), "pictures": pictures}


def _scenes(drawings: Drawings, count: int, split: str) -> list:
    made = []
    for index in range(count):
        rng = random.Random(f"{PROMPT_SEED} {split} {index}")
        scene, _, caption = sample(drawings, rng, split, CATEGORIES[index % len(CATEGORIES)])
        made.append((scene, caption))
    return made


def _judged(recogniser: Recogniser, request: Request, caption: str, pixels) -> dict:
    sight = look(pixels)
    wrong = recogniser.mistake(request, sight)
    near = wrong is None or recogniser.mistake(request, sight, best=5) is None
    return {"prompt": caption, "category": request.category, "wrong": wrong, "top5": near}


def _summary(pictures: list[dict]) -> dict:
    categories = {}
    for category in CATEGORIES:
        some = [picture for picture in pictures if picture["category"] == category]
        right, near = sum(picture["wrong"] is None for picture in some), sum(picture["top5"] for picture in some)
        total = len(some)
        categories[category] = {"right": right, "total": total, "score": right / total, "top5": near / total}
    return {"score": sum(one["score"] for one in categories.values()) / len(categories), "categories": categories}
