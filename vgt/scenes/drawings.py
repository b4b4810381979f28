"""Scenes of drawings with captions: one thing, two beside each other, several of a kind, on coloured grounds.

Everything follows from a `random.Random` and the folder of drawings (see drawing_files.py). What a caption does not say
is always the same: a thing alone lies large in the middle, on white, and is flat; of two the first named lies left of
the other. So that a model need not guess. Some combinations never occur in the train split; each scene of the test
split's last four categories holds one of them.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from . import world
from .drawing_captions import PLACE_WORDS, describe, is_plural
from .drawing_files import NAMES_FILE, PIXELS_FILE
from .world import RELATIONS, Item, Request, to_pixels

CATEGORIES = ("drawing", "background", "two", "position", "counting")
_SHARES = (6, 4, 5, 4, 4)
BACKGROUNDS = {
    **world.BACKGROUNDS,
    "black": (18, 18, 20),
    "blue": (64, 116, 228),
    "sky blue": (150, 206, 246),
    "pink": (255, 190, 212),
    "lavender": (214, 200, 246),
    "yellow": (255, 224, 96),
    "green": (96, 184, 112),
    "red": (222, 72, 72),
}
NEAREST = 0.06
"""Of the picture's side: how far apart two drawings are at least. A drawing in parts that far apart stays alone."""
_COUNTED = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
_ONE_WAY = ("Symbols",)
# Words of a drawing that its mirror image would belie.
_SIDED = ("left", "right", "clock", "pointing", "hand", "sign", "book", "watch", "calendar", "page", "moon", "button")
ALONE, TOGETHER = 0.74, 0.40
"""Of the picture's side: the size of a drawing alone, and of one that stands beside another."""
_HELD_OUT = 8
"""One in so many combinations is held out."""


@dataclass(frozen=True)
class Drawing:
    """One drawing of the folder: its row, the name its caption says, and its set, which is its style."""

    row: int
    name: str
    group: str
    style: str
    whole: bool

    @property
    def countable(self) -> bool:
        """Whether there may be several of it, or another thing beside it."""
        return self.whole and self.group in _COUNTED and not is_plural(self.name) and len(self.name.split()) <= 3

    @property
    def mirrors(self) -> bool:
        """Whether its mirror image shows the same thing."""
        return self.group not in _ONE_WAY and not any(word in self.name for word in _SIDED)


@dataclass(frozen=True)
class Placed:
    """A drawing in a picture: centre x and y, and the side of its square, as fractions of the picture's side."""

    row: int
    size: float
    x: float
    y: float
    mirrored: bool = False


@dataclass(frozen=True)
class DrawnScene:
    """A picture as data, and what its caption says of it; the request's items name drawings in place of shapes."""

    background: str
    placed: tuple[Placed, ...]
    request: Request


class Drawings:
    """The folder of drawings, mapped into memory. Raises ValueError when it is none."""

    def __init__(self, folder: str | Path):
        from safetensors import SafetensorError, safe_open

        try:
            listed = json.loads((Path(folder) / NAMES_FILE).read_text(encoding="utf-8"))
            entries = listed["drawings"]
            works = [f"{work['work']} ({work['licence']})" for work in listed["licences"]]
            with safe_open(Path(folder) / PIXELS_FILE, framework="pt") as file:
                self.pixels = file.get_tensor("pixels").numpy()
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{folder} is no folder of drawings ({error}); python -m vgt.scenes drawings makes one."
            ) from error
        self.attribution = f"Trained on drawings of {' and of '.join(works)}."
        self.all = tuple(Drawing(row, e["name"], e["group"], e["set"], e["whole"]) for row, e in enumerate(entries))
        self.styles = {
            style: [d for d in self.all if d.style == style] for style in dict.fromkeys(e["set"] for e in entries)
        }

    @cached_property
    def countable(self) -> dict[str, list[Drawing]]:
        """Style → the drawings that stand beside others."""
        return {style: [d for d in drawings if d.countable] for style, drawings in self.styles.items()}


def is_held_out(*combination) -> bool:
    """Whether training never shows this: ("background", name, colour), ("pair", name, name) or ("count", name, n)."""
    kind, *parts = combination
    parts = sorted(parts) if kind == "pair" else parts
    return crc32(" | ".join((kind, *map(str, parts))).encode()) % _HELD_OUT == 0


def held_out(scene: DrawnScene) -> set[str]:
    """Which of background, pair and count the scene holds a held-out combination of."""
    names = list(dict.fromkeys(item.shape for item in scene.request.items))
    found = {
        "background"
        for name in names
        if scene.background != "white" and is_held_out("background", name, scene.background)
    }
    if len(names) == 2 and is_held_out("pair", *names):
        found.add("pair")
    if len(names) == 1 and len(scene.placed) > 1 and is_held_out("count", names[0], len(scene.placed)):
        found.add("count")
    return found


RULE = {"drawing": set(), "background": {"background"}, "two": {"pair"}, "position": {"pair"}, "counting": {"count"}}
"""What a test scene of a category holds."""


def sample(
    drawings: Drawings, rng: random.Random, split: str = "train", category: str | None = None, free: bool = False
) -> tuple[DrawnScene, str, str]:
    """Draw a scene → (scene, category, caption); None draws a category.

    free: styles, sizes, places and sides vary beyond what the caption says, as a tokenizer should see them.
    Raises ValueError for an unknown split or category, and for a folder of a few drawings only.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be train or test.")
    if category is None:
        category = rng.choices(CATEGORIES, _SHARES)[0] if split == "train" else rng.choice(CATEGORIES)
    elif category not in CATEGORIES:
        raise ValueError(f"category is {category!r}; it must be one of {', '.join(CATEGORIES)}.")
    wanted = RULE[category] if split == "test" else set()
    style = "shaded" if "shaded" in drawings.styles and rng.random() < (0.5 if free else 0.3) else "flat"
    for _ in range(10_000):
        scene, size, place = _compose(drawings, rng, category, style, free)
        if held_out(scene) == wanted:
            text = describe(scene.request, rng, style=style, size=size, place=place)
            return scene, category, text
    raise ValueError(f"There are too few drawings for a scene of {category} in the {split} split.")


def _compose(drawings: Drawings, rng, category: str, style: str, free: bool):
    background = rng.choice(list(BACKGROUNDS)[1:]) if category == "background" else None
    size = place = relation = None
    if category in ("drawing", "background"):
        chosen, count = [rng.choice(drawings.styles[style])], 1
        if rng.random() < 0.12:
            place = rng.choice(list(PLACE_WORDS))
        elif rng.random() < 0.15:
            size = rng.choice(("small", "large"))
        layout = [_alone(size, place, rng, free)]
    else:
        chosen = rng.sample(drawings.countable[style], 1 if category == "counting" else 2)
        count = rng.randint(2, 4) if category == "counting" else 1
        relation = rng.choice(list(RELATIONS)) if category == "position" else None
        layout = _together(max(count, len(chosen)), relation, rng)
        if rng.random() < 0.4:
            background = rng.choice(list(BACKGROUNDS))
    mirrored = [free and drawing.mirrors and rng.random() < 0.5 for drawing in chosen]
    rows = [drawing.row for drawing in chosen] if count == 1 else [chosen[0].row] * count
    mirrored = mirrored if count == 1 else mirrored * count
    placed = tuple(Placed(row, *where, side) for row, where, side in zip(rows, layout, mirrored))
    items = tuple(Item(drawing.name, None, count) for drawing in chosen)
    return DrawnScene(background or "white", placed, Request(category, items, relation, background)), size, place


def _alone(size: str | None, place: str | None, rng, free: bool) -> tuple[float, float, float]:
    """(size, x, y) of one drawing."""
    if free and not (size or place):
        side = rng.uniform(0.35, 0.9)
        room = 0.48 - side / 2
        return side, 0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room)
    side = {None: ALONE, "small": 0.38, "large": 0.92}[size] * rng.uniform(0.97, 1.03)
    dx = dy = 0.0
    if place:
        side = 0.42 * rng.uniform(0.95, 1.05)
        dx = ("right" in place) - ("left" in place)
        dy = ("bottom" in place) - ("top" in place)
    return side, 0.5 + 0.25 * dx + rng.uniform(-0.012, 0.012), 0.5 + 0.25 * dy + rng.uniform(-0.012, 0.012)


def _together(count: int, relation: str | None, rng) -> list[tuple[float, float, float]]:
    """(size, x, y) of each of 2 to 4 drawings, apart from each other; two from left to right, unless told."""

    def about(value):
        return value + rng.uniform(-0.012, 0.012)

    places = world.settled_places(count, relation, 0.245, 0.26)
    if count == 2:
        return [(TOGETHER * rng.uniform(0.96, 1), about(x), about(y)) for x, y in places]
    size = 0.38 * rng.uniform(0.96, 1)
    return [(size, about(x), about(y)) for x, y in places]


def render(drawings: Drawings, scene: DrawnScene, size: int) -> np.ndarray:
    """The picture, uint8 [size, size, 3]."""
    image = Image.new("RGB", (size, size), BACKGROUNDS[scene.background])
    for thing in scene.placed:
        drawing = Image.fromarray(drawings.pixels[thing.row])
        if thing.mirrored:
            drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        side = round(thing.size * size)
        drawing = drawing.resize((side, side), Image.Resampling.BICUBIC)
        left, top = (math.floor(centre * size - side / 2 + 0.5) for centre in (thing.x, thing.y))
        image.paste(drawing, (left, top), drawing)
    return np.asarray(image)


class DrawingsDataset(Dataset):
    """`length` scenes of a seed, shapes among them: (pixels float32 [3, size, size] in [0, 1], caption).

    shapes: share of scenes of the world of shapes (world.py). free: see `sample`. Item i is the same everywhere.
    """

    def __init__(
        self,
        size: int,
        folder: str | Path,
        seed: int = 0,
        split: str = "train",
        length: int = 1_000_000,
        shapes: float = 0.2,
        free: bool = False,
    ):
        self.drawings = Drawings(folder)
        self.attribution = self.drawings.attribution
        self.size, self.seed, self.split, self.length = size, seed, split, length
        self.shapes, self.free = shapes, free

    def things(self) -> Iterator[tuple[list[str], Tensor]]:
        """Each name: captions that say it, and its pictures, float32 [4, 3, size, size]: both sets, large and small.

        A name that one of the sets lacks has the other's twice.
        """
        rows = {name: {} for name in dict.fromkeys(drawing.name for drawing in self.drawings.all)}
        for drawing in self.drawings.all:
            rows[drawing.name][drawing.style] = drawing
        for name, found in rows.items():
            rng = random.Random(f"thing {name}")
            some = [found.get(style) or next(iter(found.values())) for style in self.drawings.styles]
            counts = (1,) * 12 + (2, 3, 4) * (2 * some[0].countable)
            asked = [Request("drawing", (Item(name, None, count),), None, None) for count in counts]
            scenes = [
                DrawnScene("white", (Placed(drawing.row, side, 0.5, 0.5),), asked[0])
                for side in (ALONE, TOGETHER)
                for drawing in some
            ]
            pictures = [to_pixels(render(self.drawings, scene, self.size)) for scene in scenes]
            yield [describe(request, rng) for request in asked], torch.stack(pictures)

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[world.Scene | DrawnScene, str, str]:
        """Scene, category and caption of item `index`; the picture is not drawn."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = random.Random(f"drawings {self.split} {self.seed} {index}")
        if rng.random() < self.shapes:
            scene, category, _ = world.sample_scene(rng, self.split, free=self.free)
            return scene, category, describe(scene.request, rng, style=None)
        return sample(self.drawings, rng, self.split, free=self.free)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        scene, _, text = self.scene(index)
        image = (
            world.render(scene, self.size)
            if isinstance(scene, world.Scene)
            else render(self.drawings, scene, self.size)
        )
        return to_pixels(image), text
