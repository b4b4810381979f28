"""Scores a model on scenes: it draws held-out prompts in GenEval's six categories, and rules judge the pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ..sampling import SamplingSettings
from ..scenes.detector import detect, mistake
from ..scenes.world import CATEGORIES, Request, sample_scene
from .drawing import BATCH, batches, draw, to_image

PROMPT_SEED = "scenes score"


def prompts(count: int, split: str = "test") -> list[tuple[Request, str]]:
    """List the first `count` prompts, the categories in turn: (meaning, caption). They are always the same."""
    drawn: list[tuple[Request, str]] = []
    for index in range(count):
        category = CATEGORIES[index % len(CATEGORIES)]
        scene, _, caption = sample_scene(random.Random(f"{PROMPT_SEED} {split} {index}"), split, category)
        drawn.append((scene.request, caption))
    return drawn


def score(
    model,
    count: int,
    settings: SamplingSettings,
    *,
    split: str = "test",
    folder: Path | None = None,
    batch: int = BATCH,
) -> dict:
    """Draw `count` prompts and judge the pictures.

    Args:
        settings: complete ones.
        split: "test" for held-out combinations, "train" for others.
        folder: where to write the pictures, NUMBER-right.png or NUMBER-wrong.png; None writes none.
        batch: pictures drawn together.

    Returns {"kind", "count", "split", "settings", "score", "categories", "pictures"}: `score` is the mean over the
    categories as in GenEval, `categories` has {"right", "total", "score"} each, `pictures` the prompt, its category and
    what is wrong (None: nothing). Raises ValueError for fewer prompts than there are categories.
    """
    if count < len(CATEGORIES):
        raise ValueError(f"count is {count}; it must be at least {len(CATEGORIES)}, one prompt a category.")
    asked = prompts(count, split)
    pictures = []
    with tqdm(total=count, unit="picture") as bar:
        for number, pixels in drawn(model, asked, settings, batch):
            request, caption = asked[number]
            wrong = mistake(request, detect(pixels))
            pictures.append({"prompt": caption, "category": request.category, "wrong": wrong})
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                to_image(pixels).save(folder / f"{number:04}-{'wrong' if wrong else 'right'}.png")
            bar.update()
    categories = {}
    for category in CATEGORIES:
        verdicts = [picture["wrong"] is None for picture in pictures if picture["category"] == category]
        right, total = sum(verdicts), len(verdicts)
        categories[category] = {"right": right, "total": total, "score": right / total}
    return {
        "kind": "scenes",
        "count": count,
        "split": split,
        "settings": {**settings.to_dict(), "batch": batch},
        "score": sum(category["score"] for category in categories.values()) / len(categories),
        "categories": categories,
        "pictures": pictures,
    }


def table(result: dict) -> str:
    """Write a result of `score` as a Markdown table."""
    rows = ["| category | right | of | score |", "|---|---:|---:|---:|"]
    for name, category in result["categories"].items():
        rows.append(f"| {name} | {category['right']} | {category['total']} | {category['score']:.3f} |")
    right = sum(category["right"] for category in result["categories"].values())
    rows.append(f"| overall (mean of the categories) | {right} | {result['count']} | {result['score']:.3f} |")
    return "\n".join(rows)


def drawn(model, asked: list[tuple[Request, str]], settings: SamplingSettings, batch: int) -> Iterator:
    """Draw what `prompts` lists, in order: (number, pixels [3, H, W] in [0, 1])."""
    for numbers in batches(range(len(asked)), batch):
        pixels = draw(model, [asked[number][1] for number in numbers], numbers, settings)
        yield from zip(numbers, pixels)
