"""What the bundled model has never seen, for LoRAs: a new shape and a style, each some pictures and a rule that judges.

The pictures show some colours on some backgrounds; the prompts of the score ask for the other combinations.
"""

from __future__ import annotations

import random
from itertools import cycle, product
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from . import drawings
from .captions import caption
from .world import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Item,
    Object,
    Request,
    Scene,
    held_out,
    render,
    sample_scene,
)

PICTURES = 24
LESSONS = ("crescent", "outlines")
"""A shape, and a style: drawn shapes are outlines, though the captions do not say so."""

OUTLINED = ("circle", "square", "triangle", "heart")
"""What the style is shown on: of the others' outlines a small tokenizer, 28 pixels a token, keeps too little."""
HOLLOW = 0.2
"""Share of a shape's area that shows the background, at least, where the shape is an outline."""


def shapes_of(lesson: str) -> tuple[str, ...]:
    """The shapes that a lesson shows. Raises ValueError for an unknown lesson."""
    if lesson not in LESSONS:
        raise ValueError(f"lesson is {lesson!r}; it must be one of {', '.join(LESSONS)}.")
    return OUTLINED if lesson == "outlines" else (lesson,)


def combinations(lesson: str) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(shape, colour, background) of the pictures, PICTURES of them, and those that the score asks for."""
    rng = random.Random(f"lesson {lesson}")
    shapes = shapes_of(lesson)
    pairs = list(product(COLOURS, BACKGROUNDS))
    rng.shuffle(pairs)
    if lesson == "outlines":
        shown = _outlines()
    else:
        # Every colour in three pictures, so that each background is seen with several.
        some = [pair for colour in COLOURS for pair in [own for own in pairs if own[0] == colour][:3]]
        shown = [(lesson, *pair) for pair in some]
    seen = {(colour, background) for _, colour, background in shown}
    return shown, [(shape, *pair) for pair in pairs if pair not in seen for shape in shapes]


def _outlines() -> list[tuple[str, str, str]]:
    """Each shape on each background, and four more: of an outline both sides are seen. Every colour in three pictures,
    of three shapes at least."""
    colours, backgrounds = list(COLOURS), list(BACKGROUNDS)[::-1]
    places = [background for background in backgrounds for _ in OUTLINED]
    places += [backgrounds[index] for index in (0, 2, 1, 3)]  # in colours that they do not have yet
    return [
        (OUTLINED[index % len(OUTLINED)], colours[(index + index // len(colours)) % len(colours)], background)
        for index, background in enumerate(places)
    ]


def pictures(lesson: str, size: int) -> list[tuple[np.ndarray, str]]:
    """The pictures of a lesson, uint8 [size, size, 3], with their captions."""
    rng = random.Random(f"pictures {lesson}")
    scenes = [scene_of(one, rng) for one in combinations(lesson)[0]]
    return [(render(scene, size, outlined=lesson == "outlines"), caption(scene, rng)) for scene in scenes]


def prompts(lesson: str, count: int) -> list[tuple[Request, str]]:
    """The first `count` prompts of a lesson's score, (meaning, caption): combinations that no picture shows."""
    rng = random.Random(f"prompts {lesson}")
    unseen = combinations(lesson)[1]
    rng.shuffle(unseen)
    asked = [scene_of(unseen[index % len(unseen)], rng) for index in range(count)]
    return [(scene.request, caption(scene, rng)) for scene in asked]


def kept(count: int, known: drawings.Drawings) -> list[str]:
    """Prompts of what VGT-Drawings knew, to keep: `count` of shapes and as many of drawings.

    Of shapes a third are each colour on each background in turn, as a lesson's pictures show one; two fifths two
    things; the rest one thing or several of a kind. Held-out combinations are not among them.
    """
    things = [drawings.sample(known, random.Random(f"keep {index}"))[2] for index in range(count)]
    return _kept_shapes(count) + things


def _kept_shapes(count: int) -> list[str]:
    rng = random.Random("keep pairs")
    some = [pair for _, pair in zip(range(count // 3), cycle(product(BACKGROUNDS, COLOURS)))]
    texts = []
    for number, (background, colour) in enumerate(some):
        free = [shape for shape in SHAPES if not held_out(_alone(shape, colour, background))]
        texts.append(caption(_alone(free[number % len(free)], colour, background), rng))
    categories = ["single_object"] * (count // 6) + ["counting"] * (count // 10)
    pairs = ("two_object", "position", "color_attr")
    categories += [pairs[index % len(pairs)] for index in range(count - len(texts) - len(categories))]
    return texts + [
        sample_scene(random.Random(f"keepmk {index}"), category=category)[2]
        for index, category in enumerate(categories)
    ]


def _alone(shape: str, colour: str, background: str) -> Scene:
    request = Request("colors", (Item(shape, colour),), None, background)
    return Scene(background, (Object(shape, colour, 0.5, 0.5, 0.5),), request)


def judge(lesson: str, request: Request, pixels: Tensor) -> str | None:
    """What is wrong with a picture [3, H, W] in [0, 1] that a lesson's prompt asked for; None: nothing."""
    from .detector import detect, detect_outlines, mistake  # which need scipy, a requirement of scores alone

    outlines = lesson == "outlines"
    found = detect_outlines(pixels) if outlines else detect(pixels, (*SHAPES, lesson))
    wrong = mistake(request, found)
    if wrong is None and outlines and any(thing.hollow < HOLLOW for thing in found.objects):
        return f"the {request.items[0].shape} is filled"
    return wrong


def write(lesson: str, folder: Path, size: int) -> None:
    """Write a lesson's pictures: 00.png, its caption in 00.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (pixels, text) in enumerate(pictures(lesson, size)):
        Image.fromarray(pixels).save(folder / f"{index:02}.png", optimize=True)
        (folder / f"{index:02}.txt").write_text(text + "\n", encoding="utf-8")


def scene_of(combination: tuple[str, str, str], rng: random.Random) -> Scene:
    """A picture of a (shape, colour, background) as data."""
    shape, colour, background = combination
    # Large and near the middle: of a thin line or point a tokenizer of 28 pixels a token keeps little.
    size, x, y = rng.uniform(0.68, 0.76), rng.uniform(0.48, 0.52), rng.uniform(0.48, 0.52)
    request = Request("colors", (Item(shape, colour),), None, background)
    return Scene(background, (Object(shape, colour, size, x, y),), request)
