"""The words for a scene: several ways to say each thing, GenEval's among them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .world import Item, Request, Scene

PREFIXES = ("", "a photo of ", "a picture of ", "an image of ", "a drawing of ")
NUMBERS = {1: ("one", "1", "a single"), 2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
CONJUNCTIONS = ("and", "and", "next to", "with")
BACKGROUND_WORDS = ("{} on a {} background", "{} on {}", "{}, {} background", "{} with a {} background")


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption that says what `scene.request` asks for, no more and no less; the wording is drawn from `rng`."""
    return describe(scene.request, rng)


def describe(request: Request, rng: random.Random) -> str:
    """Words for a request; see `caption`."""
    if request.category == "counting":
        text = _counted(request.items[0], rng)
    elif len(request.items) == 1:
        text = _one(request.items[0])
    else:
        joint = rng.choice(RELATION_WORDS.get(request.relation, CONJUNCTIONS))
        text = f"{_one(request.items[0])} {joint} {_one(request.items[1])}"
    text = rng.choice(PREFIXES) + text
    if request.background is not None:
        text = rng.choice(BACKGROUND_WORDS).format(text, request.background)
    return text


def _one(item: Item) -> str:
    words = item.shape if item.colour is None else f"{item.colour} {item.shape}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _counted(item: Item, rng: random.Random) -> str:
    number = rng.choices(NUMBERS[item.count], weights=(3, 1, 1)[: len(NUMBERS[item.count])])[0]
    noun = item.shape if item.count == 1 else plural(item.shape)
    return " ".join(word for word in (number, item.colour, noun) if word)


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")
