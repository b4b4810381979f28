"""What is in a picture of a scene: background and objects, found by rules, and whether that is what was asked for.

A drawn picture has softer edges and slightly other colours than a render, so colours are compared in a perceptual
space, the mixed colours of edges are left out until the objects are known, and shapes are compared as areas.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from .world import BACKGROUNDS, COLOURS, SHAPES, Request, outline

SMALLEST_AREA = 0.005
"""Of the picture; less is a speck and no object. The smallest object of a scene, a star, has 0.03."""
SHAPE_LIKENESS = 0.75
"""Intersection over union with the ideal shape at which a thing has that shape, unless it is as near to another."""
SHAPE_MARGIN = 0.03
"""By how much the best shape must beat the others: what lies between two has neither. Circle and square reach 0.84."""
STANDS_OUT = 0.08
"""Distance in Oklab from the background at which a pixel is part of an outline. Cream and yellow are 0.15 apart."""
TILTS = (-10, 0, 10)
"""Degrees by which a shape may lean."""
POSITION_MARGIN = 0.1
"""GenEval's: how far apart two centres must be, in sums of the objects' extents, to count as beside each other."""
WORKING_SIZE = 112
"""Pixels; all widths below are meant for pictures of about this size."""
GRID = 48


@dataclass(frozen=True)
class Found:
    """One object in a picture. Centre, extent and area are fractions of the picture's width, height and area."""

    shape: str | None
    """None: it has none of the shapes."""
    colour: str
    x: float
    y: float
    width: float
    height: float
    area: float
    hollow: float = 0.0
    """Share of its area that shows the background; 0 unless outlines were looked for."""


@dataclass(frozen=True)
class Detection:
    """All that is in a picture."""

    background: str
    objects: tuple[Found, ...]


def detect(pixels: Tensor, shapes: tuple[str, ...] = SHAPES) -> Detection:
    """Find what is in a picture: pixels [3, H, W] in [0, 1] (what lies outside is clamped), at least 56x56.

    shapes: those that a thing may have, in the terms of `outline`.
    """
    background, distances = _look(pixels)
    labels = distances.argmin(-1)
    objects = [_describe(mask, colour, shapes) for mask, colour in _segment(labels, distances[..., 0])]
    return Detection(background, tuple(objects))


def detect_outlines(pixels: Tensor, shapes: tuple[str, ...] = SHAPES) -> Detection:
    """The same for outlines: a thing is all that stands out from the background in one piece, and what it encloses.

    Its colour is that of most of the outline.
    """
    background, distances = _look(pixels)
    parts, count = ndimage.label(ndimage.binary_opening(distances[..., 0] > STANDS_OUT, np.ones((3, 3))))
    objects = []
    for part in range(1, count + 1):
        own = parts == part
        area = ndimage.binary_fill_holes(own)
        if area.mean() >= SMALLEST_AREA:
            colour = np.bincount(distances[own][:, 1:].argmin(-1)).argmax()
            found = _describe(area, list(COLOURS)[colour], shapes)
            objects.append(replace(found, hollow=float(1 - own.sum() / area.sum())))
    return Detection(background, tuple(objects))


def _look(pixels: Tensor) -> tuple[str, np.ndarray]:
    """pixels [3, H, W] → the background, and each pixel's distances from it, as drawn, and from COLOURS: [h, w, 9]."""
    pixels = pixels.detach().float().clamp(0, 1).cpu()
    # A fine picture is looked at from further away.
    away = max(1, round(min(pixels.shape[1:]) / WORKING_SIZE))
    pixels = F.adaptive_avg_pool2d(pixels, [side // away for side in pixels.shape[1:]])
    # A little noise is no mistake.
    image = oklab(ndimage.gaussian_filter(pixels.numpy().transpose(1, 2, 0), 0.5, axes=(0, 1)))
    everything = {**BACKGROUNDS, **COLOURS}
    nearest = _distances(image, everything).argmin(-1)
    counts = np.bincount(nearest.flatten(), minlength=len(everything))[: len(BACKGROUNDS)]
    background = list(BACKGROUNDS)[counts.argmax()]

    # From here on a pixel is background, as it was drawn and not as it should be, or one of the objects' colours.
    drawn = np.median(image[nearest == counts.argmax()], axis=0) if counts.max() else _palette(BACKGROUNDS)[0]
    distances = np.concatenate((np.linalg.norm(image - drawn, axis=-1)[..., None], _distances(image, COLOURS)), axis=-1)
    return background, distances


def judge(request: Request, pixels: Tensor) -> bool:
    """Is this the picture that was asked for? pixels [3, H, W] in [0, 1]. See `mistake` for the rules."""
    return mistake(request, detect(pixels)) is None


def mistake(request: Request, found: Detection) -> str | None:
    """What is wrong with a picture, None when nothing is.

    Stricter than GenEval: there must be the objects asked for and no others in every category, and the background
    must be right where the caption names one. The rule for positions is GenEval's.
    """
    if request.background is not None and found.background != request.background:
        return f"the background is {found.background}, not {request.background}"
    unshaped = [thing.colour for thing in found.objects if thing.shape is None]
    if unshaped:
        return f"something {unshaped[0]} has none of the shapes"
    wanted = Counter({item.shape: item.count for item in request.items})
    shapes = Counter(thing.shape for thing in found.objects)
    if shapes != wanted:
        return f"there is {_count(shapes)}, not {_count(wanted)}"
    for item in request.items:
        for thing in found.objects:
            if thing.shape == item.shape and item.colour not in (None, thing.colour):
                return f"the {thing.shape} is {thing.colour}, not {item.colour}"
    if request.category == "counting" and len({thing.colour for thing in found.objects}) > 1:
        return "the objects differ in colour"
    if request.relation is not None:
        first, second = (next(o for o in found.objects if o.shape == item.shape) for item in request.items)
        if request.relation not in relations(first, second):
            return f"the {first.shape} is not {request.relation} the {second.shape}"
    return None


def relations(first: Found, second: Found) -> set[str]:
    """Where the first object lies as seen from the second, by GenEval's rule: of left of, right of, above, below."""
    offset = np.array((first.x - second.x, first.y - second.y))
    extent = np.array((first.width + second.width, first.height + second.height))
    beyond = np.maximum(np.abs(offset) - POSITION_MARGIN * extent, 0) * np.sign(offset)
    dx, dy = beyond / max(np.linalg.norm(offset), 1e-6)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}


def _count(shapes: Counter) -> str:
    return " and ".join(f"{shapes[shape]} {shape}" for shape in sorted(shapes)) or "nothing"


def _segment(labels: np.ndarray, from_background: np.ndarray):
    """labels [H, W], 0 is background → (mask, colour) of each object, from its core outwards."""
    cores, colours = np.zeros_like(labels), []
    for index, colour in enumerate(COLOURS, start=1):
        # Edges are bands of in-between colours; what is left of a colour after an opening this wide is no band.
        core = ndimage.binary_opening(labels == index, np.ones((5, 5)))
        parts, count = ndimage.label(core)
        for part in range(1, count + 1):
            mask = parts == part
            if mask.sum() >= SMALLEST_AREA * labels.size:
                colours.append(colour)
                cores[mask] = len(colours)
    if not colours:
        return
    # Everything between a core and the background belongs to the nearest core, up to halfway to the background.
    away, (rows, columns) = ndimage.distance_transform_edt(cores == 0, return_indices=True)
    owner = cores[rows, columns]
    typical = np.array([0, *(np.median(from_background[cores == part]) for part in range(1, len(colours) + 1))])
    solid = (from_background > typical[owner] / 2) & (away <= 18)
    for part, colour in enumerate(colours, start=1):
        core = cores == part
        yield ndimage.binary_propagation(core, mask=core | (solid & (owner == part))), colour


def _describe(mask: np.ndarray, colour: str, shapes: tuple[str, ...]) -> Found:
    height, width = mask.shape
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    return Found(
        shape_of(mask, shapes),
        colour,
        (columns.start + columns.stop) / 2 / width,
        (rows.start + rows.stop) / 2 / height,
        (columns.stop - columns.start) / width,
        (rows.stop - rows.start) / height,
        float(mask.mean()),
    )


def shape_of(mask: np.ndarray, shapes: tuple[str, ...] = SHAPES) -> str | None:
    """The shape whose outline, of the same area and centre of mass, covers most of the mask."""
    row, column = ndimage.center_of_mass(mask)
    places = _grid() * np.sqrt(mask.sum())
    own = ndimage.map_coordinates(mask.astype(np.float32), [places[1] + row, places[0] + column], order=1) > 0.5
    templates = _templates(shapes)
    likeness = ((templates & own).sum((-2, -1)) / (templates | own).sum((-2, -1))).max(0)
    second, best = np.sort(likeness)[-2:]
    return shapes[likeness.argmax()] if best >= SHAPE_LIKENESS and best - second >= SHAPE_MARGIN else None


@cache
def _grid() -> np.ndarray:
    """[2, GRID, GRID]: x and y of sample points around an area of 1. A star of area 1 is 1.8 wide."""
    axis = (np.arange(GRID) + 0.5) / GRID * 2.2 - 1.1
    return np.stack(np.meshgrid(axis, axis))


@cache
def _templates(shapes: tuple[str, ...]) -> np.ndarray:
    """bool [tilts, shapes, GRID, GRID]: each shape with area 1 and its centre of mass in the middle."""
    tilted = []
    for angle in np.radians(TILTS):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array(((cos, sin), (-sin, cos)))
        tilted.append([_inside(_normalised(outline(shape)) @ turn, *_grid()) for shape in shapes])
    return np.array(tilted)


def _normalised(points: np.ndarray) -> np.ndarray:
    """A polygon [N, 2], moved and scaled to area 1 and centre of mass 0 (the shoelace formula)."""
    x, y = points.T
    following_x, following_y = np.roll(points, -1, axis=0).T
    cross = x * following_y - following_x * y
    area = cross.sum() / 2
    centre = np.array(((x + following_x) @ cross, (y + following_y) @ cross)) / (6 * area)
    return (points - centre) / np.sqrt(abs(area))


def _inside(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of the places lie in the polygon: a ray from there crosses an odd number of its edges."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside


def _distances(image: np.ndarray, colours: dict) -> np.ndarray:
    """image [H, W, 3] in Oklab → distances [H, W, colours]."""
    palette = _palette(colours)
    squares = (image**2).sum(-1, keepdims=True) - 2 * image @ palette.T + (palette**2).sum(-1)
    return np.sqrt(np.maximum(squares, 0))


def _palette(colours: dict) -> np.ndarray:
    return oklab(np.array(list(colours.values()), dtype=np.float32) / 255)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] → Oklab, both [..., 3]. Source: Björn Ottosson, A perceptual color space for image processing."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            (0.4122214708, 0.2119034982, 0.0883024619),
            (0.5363325363, 0.6806995451, 0.2817188376),
            (0.0514459929, 0.1073969566, 0.6299787005),
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            (0.2104542553, 1.9779984951, 0.0259040371),
            (0.7936177850, -2.4285922050, 0.7827717662),
            (-0.0040720468, 0.4505937099, -0.8086757660),
        ]
    )
