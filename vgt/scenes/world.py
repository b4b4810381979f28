"""Scenes: pictures of plain shapes with captions, made on the spot, in GenEval's six categories.

Everything follows from a `random.Random`, so a seed names a data set. Some combinations never occur in the train
split, neither in a picture nor in a caption: each picture of the test split holds one of them.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

from .captions import caption

__all__ = ["CATEGORIES", "Item", "Object", "Request", "Scene", "ScenesDataset", "caption", "export", "held_out"]
__all__ += ["render", "sample_scene"]

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's, in its order and spelling."""
# In training: what a caption leaves most open, and two coloured things at once, are learnt last and shown most often.
_SHARES = (5, 2, 2, 3, 2, 4)

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
NEW_SHAPES = ("crescent", "house")
"""Shapes of no scene, for a model to learn from a few pictures: `outline` and the detector know them when asked."""
COLOURS = {
    "red": (222, 45, 48),
    "orange": (246, 138, 30),
    "yellow": (252, 214, 48),
    "green": (34, 154, 76),
    "blue": (40, 98, 226),
    "purple": (124, 58, 184),
    "pink": (250, 134, 190),
    "brown": (126, 78, 44),
}
BACKGROUNDS = {
    "white": (252, 252, 252),
    "gray": (196, 199, 205),
    "cream": (250, 236, 204),
    "mint": (196, 236, 214),
    "navy": (22, 28, 62),
}
USUAL = {"circle": "blue", "square": "green", "triangle": "red", "star": "yellow", "heart": "pink", "cross": "purple"}
"""A shape's colour in scenes that settle what a caption leaves open."""
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first object lies as seen from the second: x to the right, y downwards."""

# What training never shows: these on the backgrounds UNSEEN_ON, and HELD_OUT_BACKGROUNDS without another shape. It does
# on other backgrounds, or beside another shape, so that a model learns all colours and backgrounds of each.
UNSEEN_ON = {"gray", "cream"}
HELD_OUT_COLOURS = {
    ("red", "star"), ("blue", "triangle"), ("green", "heart"),
    ("yellow", "square"), ("purple", "circle"), ("orange", "cross"),
}  # fmt: skip
HELD_OUT_PAIRS = {("circle", "heart"), ("square", "star"), ("cross", "triangle")}
HELD_OUT_COUNTS = {(4, "circle"), (3, "square"), (2, "triangle"), (3, "star"), (2, "heart"), (4, "cross")}
HELD_OUT_POSITIONS = {
    ("circle", "left of", "star"), ("square", "above", "heart"), ("triangle", "left of", "square"),
    ("heart", "above", "triangle"), ("cross", "left of", "heart"), ("star", "above", "cross"),
}  # fmt: skip
HELD_OUT_BACKGROUNDS = {
    ("circle", "mint"), ("square", "navy"), ("triangle", "gray"),
    ("star", "cream"), ("heart", "navy"), ("cross", "mint"),
}  # fmt: skip

# The combination that a test picture of the category is about.
RULE = dict(zip(CATEGORIES, ("background", "pair", "count", "colour", "position", "colour")))

LINE = 0.07
"""Width of an outline, as a fraction of the picture's side."""
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Item:
    """What a caption asks for: `count` objects of a shape. `colour` None leaves the colour open."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Request:
    """The meaning of a caption. Two items stand in the `relation` of the first to the second, None leaves it open."""

    category: str
    items: tuple[Item, ...]
    relation: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Object:
    """One shape. x and y are its centre, `size` the side of the square it fits; fractions of the picture's side."""

    shape: str
    colour: str
    size: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """A picture as data, and what its caption says of it."""

    background: str
    objects: tuple[Object, ...]
    request: Request


def sample_scene(
    rng: random.Random, split: str = "train", category: str | None = None, free: bool = True
) -> tuple[Scene, str, str]:
    """Draw a scene → (scene, category, caption); None draws a category: in training two coloured things more often.

    free: colours, sizes and places vary where the caption leaves them open; else they are always about the same.
    A train scene holds no held-out combination; a test scene holds those its category is about, and no others.
    Raises ValueError for an unknown split or category.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; it must be train or test.")
    if category is None:
        category = rng.choices(CATEGORIES, _SHARES)[0] if split == "train" else rng.choice(CATEGORIES)
    elif category not in CATEGORIES:
        raise ValueError(f"category is {category!r}; it must be one of {', '.join(CATEGORIES)}.")
    wanted = set() if split == "train" else {RULE[category]}
    while True:
        scene = _compose(_sample_request(rng, category), rng, free)
        if held_out(scene) == wanted:
            return scene, category, caption(scene, rng)


def held_out(scene: Scene) -> set[str]:
    """Which of the rules (colour, pair, count, position, background) the scene's held-out combinations fall under."""
    objects = scene.objects
    shapes = sorted({thing.shape for thing in objects})
    rules = set()
    if len(shapes) == 1 and (shapes[0], scene.background) in HELD_OUT_BACKGROUNDS:
        rules.add("background")
    if scene.background not in UNSEEN_ON:
        return rules
    if any((thing.colour, thing.shape) in HELD_OUT_COLOURS for thing in objects):
        rules.add("colour")
    if tuple(shapes) in HELD_OUT_PAIRS:
        rules.add("pair")
    if len(shapes) == 1 and (len(objects), shapes[0]) in HELD_OUT_COUNTS:
        rules.add("count")
    if len(shapes) == 2:
        # The layouts keep the other axis' distance small, so exactly one of the two orders and axes is the relation.
        one, other = objects
        for a, b in ((one, other), (other, one)):
            sideways = abs(a.x - b.x) > abs(a.y - b.y)
            relation = "left of" if sideways else "above"
            if (a.x < b.x if sideways else a.y < b.y) and (a.shape, relation, b.shape) in HELD_OUT_POSITIONS:
                rules.add("position")
    return rules


def _sample_request(rng: random.Random, category: str) -> Request:
    relation = None
    if category == "counting":
        items = (Item(rng.choice(SHAPES), _sometimes(rng, 0.5, COLOURS), rng.randint(1, 4)),)
    elif category in ("single_object", "colors"):
        items = (Item(rng.choice(SHAPES), rng.choice(list(COLOURS)) if category == "colors" else None),)
    else:
        coloured = category == "color_attr" or (category == "position" and rng.random() < 0.5)
        colours = rng.sample(list(COLOURS), 2) if coloured else (None, None)
        items = tuple(Item(shape, colour) for shape, colour in zip(rng.sample(SHAPES, 2), colours))
        if category == "position":
            relation = rng.choice(list(RELATIONS))
    return Request(category, items, relation, _sometimes(rng, 0.6, BACKGROUNDS))


def _sometimes(rng: random.Random, probability: float, names) -> str | None:
    return rng.choice(list(names)) if rng.random() < probability else None


def _compose(request: Request, rng: random.Random, free: bool) -> Scene:
    """Fill in what the request leaves open: colours, places and sizes. A background that is not named is white."""
    colours = rng.sample(list(COLOURS), len(request.items))
    if not free:
        colours = [USUAL[item.shape] for item in request.items]
    things = [
        (item.shape, item.colour or colour) for item, colour in zip(request.items, colours) for _ in range(item.count)
    ]
    layout = (_layout if free else _settled)(len(things), request.relation, rng)
    objects = tuple(Object(shape, colour, size, x, y) for (shape, colour), (size, x, y) in zip(things, layout))
    return Scene(request.background or "white", objects, request)


def _layout(count: int, relation: str | None, rng: random.Random) -> list[tuple[float, float, float]]:
    """(size, x, y) of each of 1 to 4 objects: apart from each other and from the edge."""
    near, far = 0.27, 0.73

    def about(value, by):
        return value + rng.uniform(-by, by)

    if count == 1:
        size = rng.uniform(0.42, 0.62)
        room = 0.44 - size / 2
        return [(size, about(0.5, room), about(0.5, room))]
    if count == 2:
        # Captions name things in the order in which one reads, unless they say where things lie.
        dx, dy = RELATIONS[relation or rng.choice(("left of", "above"))]
        centres = [(0.5 + side * 0.23 * dx, 0.5 + side * 0.23 * dy) for side in (1, -1)]
        # Both move together across the axis, a little against each other.
        shift = rng.uniform(-0.14, 0.14)
        centres = [(about(x + shift * abs(dy), 0.03), about(y + shift * abs(dx), 0.03)) for x, y in centres]
        return [(rng.uniform(0.32, 0.38), x, y) for x, y in centres]
    if count == 3:
        base, top = (near, far) if rng.random() < 0.5 else (far, near)
        centres = [(near, base), (far, base), (0.5, top)]
    else:
        centres = [(near, near), (far, near), (near, far), (far, far)]
    size = rng.uniform(0.3, 0.38)
    return [(size * rng.uniform(0.94, 1), about(x, 0.03), about(y, 0.03)) for x, y in centres]


def settled_places(count: int, relation: str | None, apart: float, edge: float) -> list[tuple[float, float]]:
    """(x, y) of each of 1 to 4 things, the same each time; of two the first lies on the left, unless told.

    apart: half the distance of two. edge: how far three and four are from the picture's edges.
    """
    near, far = edge, 1 - edge
    if count == 1:
        return [(0.5, 0.5)]
    if count == 2:
        dx, dy = RELATIONS[relation or "left of"]
        return [(0.5 + side * apart * dx, 0.5 + side * apart * dy) for side in (1, -1)]
    if count == 3:
        return [(0.5, near), (near, far), (far, far)]
    return [(near, near), (far, near), (near, far), (far, far)]


def _settled(count: int, relation: str | None, rng: random.Random) -> list[tuple[float, float, float]]:
    """(size, x, y) of each of 1 to 4 objects, in about the same places each time."""
    size = 0.56 if count == 1 else 0.36

    def about(value):
        return value + rng.uniform(-0.01, 0.01)

    return [
        (size * rng.uniform(0.97, 1.03), about(x), about(y)) for x, y in settled_places(count, relation, 0.23, 0.27)
    ]


@cache
def outline(shape: str) -> np.ndarray:
    """The shape's corners [N, 2], x right and y down, within [-0.5, 0.5] and centred there."""
    turn = np.arange(96) * (2 * math.pi / 96)
    if shape == "circle":
        points = 0.47 * np.stack((np.cos(turn), np.sin(turn)), 1)
    elif shape == "square":
        points = 0.43 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    elif shape == "triangle":
        points = np.array([(0, -0.45), (0.5, 0.43), (-0.5, 0.43)])
    elif shape == "star":
        turn = np.arange(10) * (math.pi / 5)
        radius = np.where(np.arange(10) % 2, 0.25, 0.54)
        points = np.stack((radius * np.sin(turn), -radius * np.cos(turn)), 1)
    elif shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        points = np.stack((x, y), 1) / 33
    elif shape == "cross":
        a, b = 0.165, 0.48
        points = np.array([(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a)])
        points = np.concatenate((points, [(-b, -a), (-a, -a)]))
    elif shape == "crescent":
        # Two arcs between the same horns: the outer of a circle at 0, the inner of one shifted to the right.
        radius, inner, shift = 0.5, 0.4, 0.28
        horn = math.acos((radius**2 + shift**2 - inner**2) / (2 * radius * shift))
        end = math.acos((inner**2 + shift**2 - radius**2) / (2 * inner * shift))
        outer = np.linspace(horn, 2 * math.pi - horn, 64)
        bite = np.linspace(math.pi + end, math.pi - end, 48)
        points = np.concatenate(
            (
                radius * np.stack((np.cos(outer), np.sin(outer)), 1),
                np.stack((shift + inner * np.cos(bite), inner * np.sin(bite)), 1),
            )
        )
    elif shape == "house":
        points = np.array([(0, -0.5), (0.5, -0.06), (0.36, -0.06), (0.36, 0.46), (-0.36, 0.46), (-0.36, -0.06)])
        points = np.concatenate((points, [(-0.5, -0.06)]))
    else:
        raise ValueError(f"shape is {shape!r}; it must be one of {', '.join(SHAPES + NEW_SHAPES)}.")
    return points - (points.max(0) + points.min(0)) / 2


def render(scene: Scene, size: int, outlined: bool = False) -> np.ndarray:
    """The picture, uint8 [size, size, 3], with soft edges. outlined: of each shape its outline only."""
    image = Image.new("RGB", (size, size), BACKGROUNDS[scene.background])
    for thing in scene.objects:
        left, top = (math.floor((centre - thing.size / 2) * size) for centre in (thing.x, thing.y))
        side = math.ceil(thing.size * size) + 1
        # Pillow's shapes are jagged, so the shape is drawn larger and made small again.
        mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
        points = (outline(thing.shape) * thing.size + (thing.x, thing.y)) * size - (left, top)
        # Pillow's coordinates name the middle of a pixel.
        points = points * SUPERSAMPLING - 0.5
        corners = [tuple(point) for point in points.tolist()]
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        if outlined:
            # A pen goes round the shape; what it leaves outside is cut away.
            line, pen = Image.new("L", mask.size), LINE * size * SUPERSAMPLING
            draw = ImageDraw.Draw(line)
            for corner, following in zip(corners, corners[1:] + corners[:1]):
                draw.line([corner, following], fill=255, width=round(2 * pen))
                draw.ellipse([part + side * pen for side in (-1, 1) for part in corner], fill=255)
            mask = ImageChops.darker(mask, line)
        image.paste(COLOURS[thing.colour], (left, top), mask.reduce(SUPERSAMPLING))
    return np.asarray(image)


class ScenesDataset(Dataset):
    """`length` scenes of a seed: (pixels float32 [3, size, size] in [0, 1], caption). Item i is the same everywhere."""

    def __init__(self, size: int, seed: int = 0, split: str = "train", length: int = 100_000):
        self.size, self.seed, self.split, self.length = size, seed, split, length

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> tuple[Scene, str, str]:
        """Scene, category and caption of item `index`; the picture is not drawn."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return sample_scene(random.Random(f"scenes {self.split} {self.seed} {index}"), self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        scene, _, text = self.scene(index)
        return to_pixels(render(scene, self.size)), text


def to_pixels(image: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] → float32 [3, H, W] in [0, 1]."""
    # In numpy, whose arithmetic takes no further threads: data loading has as many processes as there are cores.
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)) / np.float32(255))


def export(folder: str | Path, count: int, size: int, seed: int = 0, split: str = "train") -> None:
    """Write scenes as a folder of images: 000000.png, its caption in 000000.txt; captions.jsonl tells all of each."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = ScenesDataset(size, seed, split, count)
    with open(folder / "captions.jsonl", "w", encoding="utf-8") as lines:
        for index in range(count):
            scene, category, text = dataset.scene(index)
            name = f"{index:06}.png"
            Image.fromarray(render(scene, size)).save(folder / name)
            (folder / f"{index:06}.txt").write_text(text + "\n", encoding="utf-8")
            line = {"image": name, "caption": text, "category": category, "scene": asdict(scene)}
            lines.write(json.dumps(line) + "\n")
