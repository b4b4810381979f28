"""Scores what a LoRA has taught the bundled model: combinations that no picture showed, judged by rules."""

from __future__ import annotations

from pathlib import Path

from ..sampling import SamplingSettings
from ..scenes.lessons import judge, prompts
from .drawing import BATCH, batches, draw, to_image


def score(
    model, lesson: str, count: int, settings: SamplingSettings, *, folder: Path | None = None, batch: int = BATCH
) -> dict:
    """Draw `count` prompts of a lesson (scenes.lessons.LESSONS) and judge the pictures.

    Args:
        settings: complete ones.
        folder: where to write the pictures, NUMBER-right.png or NUMBER-wrong.png; None writes none.
        batch: pictures drawn together.

    Returns {"kind", "lesson", "count", "settings", "score", "pictures"}: `pictures` has the prompts and what is wrong
    (None: nothing).
    """
    asked = prompts(lesson, count)
    pictures = []
    for numbers in batches(range(count), batch):
        for number, pixels in zip(numbers, draw(model, [asked[number][1] for number in numbers], numbers, settings)):
            request, caption = asked[number]
            wrong = judge(lesson, request, pixels)
            pictures.append({"prompt": caption, "wrong": wrong})
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                to_image(pixels).save(folder / f"{number:04}-{'wrong' if wrong else 'right'}.png")
    right = sum(picture["wrong"] is None for picture in pictures)
    return {
        "kind": "lesson",
        "lesson": lesson,
        "count": count,
        "settings": settings.to_dict(),
        "score": right / count,
        "pictures": pictures,
    }
