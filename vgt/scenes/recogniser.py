"""Which drawing of all is a picture nearest to? Background and things are found by rules; there is nothing learnt here.

A thing is described by its colours on a grid and by the directions of its edges, each within the smallest square about
it, and compared with the same description of every drawing, laid on the same background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from .detector import Found, oklab, relations
from .drawings import BACKGROUNDS, NEAREST, Drawings
from .world import Request

WORKING_SIZE = 112
"""Pixels; pictures are looked at from so far away that they are about this large."""
FOREGROUND = 0.05
"""Distance from the background in Oklab at which a pixel belongs to a thing."""
SMALLEST_AREA = 0.004
"""Of the picture; less is a speck and no thing."""
GRID = 20
"""Cells of the colour grid's side."""
CELLS, DIRECTIONS = 5, 8
"""Cells of the edge histograms' side, and bins of a half-turn."""
EDGE_WEIGHT = 0.35


@dataclass(frozen=True)
class Thing:
    """What stands apart from the rest: its place as fractions of the picture's sides, and its description."""

    place: Found
    description: np.ndarray


@dataclass(frozen=True)
class Sight:
    """All that is seen in a picture: the background, everything as one thing (None: nothing), and the things apart."""

    background: str
    everything: Thing | None
    things: tuple[Thing, ...]


def look(pixels: Tensor) -> Sight:
    """pixels [3, H, W] in [0, 1] (what lies outside is clamped), at least 56x56."""
    pixels = pixels.detach().float().clamp(0, 1).cpu()
    away = max(1, round(min(pixels.shape[1:]) / WORKING_SIZE))
    pixels = F.adaptive_avg_pool2d(pixels, [side // away for side in pixels.shape[1:]])
    return _look(pixels.numpy().transpose(1, 2, 0))


def _look(rgb: np.ndarray) -> Sight:
    """rgb [H, W, 3] in [0, 1], about WORKING_SIZE high."""
    image = oklab(rgb).astype(np.float32)
    border = np.concatenate((image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3)))
    border = np.concatenate((border, image[:, -2:].reshape(-1, 3)))
    ground = np.median(border, axis=0)
    palette = oklab(np.array(list(BACKGROUNDS.values())) / 255)
    background = list(BACKGROUNDS)[np.linalg.norm(palette - ground, axis=-1).argmin()]
    image = image - ground
    mask = np.linalg.norm(ndimage.gaussian_filter(image, 0.6, axes=(0, 1)), axis=-1) > FOREGROUND
    # Parts of one drawing may lie apart, but less than two drawings do.
    reach = max(1, int(NEAREST / 3 * len(mask)))
    labels, count = ndimage.label(ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=reach), np.ones((3, 3)))
    parts = [mask & (labels == part) for part in range(1, count + 1)]
    parts = [part for part in parts if part.sum() >= SMALLEST_AREA * mask.size]
    if not parts:
        return Sight(background, None, ())
    whole = _thing(image, np.logical_or.reduce(parts))
    return Sight(background, whole, tuple(_thing(image, part) for part in parts) if len(parts) > 1 else (whole,))


def _thing(image: np.ndarray, mask: np.ndarray) -> Thing:
    """image [H, W, 3], Oklab less the background; mask [H, W] of the thing."""
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    height, width = mask.shape
    found = Found(
        None,
        "",
        (columns.start + columns.stop) / 2 / width,
        (rows.start + rows.stop) / 2 / height,
        (columns.stop - columns.start) / width,
        (rows.stop - rows.start) / height,
        float(mask.mean()),
    )
    half = max(columns.stop - columns.start, rows.stop - rows.start) / 2
    y, x = (rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2
    own = np.where(mask[..., None], image, 0).astype(np.float32)
    patch = np.stack([_resized(own[..., channel], (x - half, y - half, x + half, y + half)) for channel in range(3)])
    return Thing(found, _description(patch))


def _resized(plane: np.ndarray, box: tuple) -> np.ndarray:
    """The part of a plane within a box (left, top, right, bottom), which may reach out, at twice the grid."""
    pad = int(np.ceil(max(0, -min(box), box[2] - plane.shape[1], box[3] - plane.shape[0]))) + 1
    image = Image.fromarray(np.pad(plane, pad))
    return np.asarray(image.resize((2 * GRID, 2 * GRID), Image.Resampling.BILINEAR, box=[side + pad for side in box]))


def _description(patch: np.ndarray) -> np.ndarray:
    """patch [3, 2 GRID, 2 GRID] → float32 [n]; distances between two are what tells drawings apart."""
    colours = ndimage.gaussian_filter(patch, 0.8, axes=(1, 2)).reshape(3, GRID, 2, GRID, 2).mean((2, 4)) / GRID
    dy, dx = np.gradient(ndimage.gaussian_filter(patch[0], 0.8))
    strength = np.hypot(dx, dy)
    turn = (np.arctan2(dy, dx) % np.pi) * (DIRECTIONS / np.pi)
    low = np.floor(turn).astype(int) % DIRECTIONS
    share = turn - np.floor(turn)
    side = 2 * GRID // CELLS
    planes = np.zeros((DIRECTIONS, *strength.shape), dtype=np.float32)
    for index in range(DIRECTIONS):
        planes[index] = strength * ((low == index) * (1 - share) + ((low + 1) % DIRECTIONS == index) * share)
    edges = planes.reshape(DIRECTIONS, CELLS, side, CELLS, side).sum((2, 4))
    edges = np.sqrt(edges / (edges.sum() + 1e-6)) * (EDGE_WEIGHT / CELLS)
    return np.concatenate((colours.ravel(), edges.ravel())).astype(np.float32)


class Recogniser:
    """Names what is seen. The drawings are described once for each background, when it is first met (half a minute)."""

    def __init__(self, drawings: Drawings):
        self.drawings = drawings
        self._described: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def ranked(self, thing: Thing, background: str, alone: bool) -> list[str]:
        """All names, the nearest first; `alone`: among all drawings, else among those that stand beside others."""
        described, squares = self._on(background)
        distances = squares - 2 * described @ thing.description
        names = {}
        for row in distances.argsort(kind="stable").tolist():
            drawing = self.drawings.all[row]
            if alone or drawing.whole:
                names.setdefault(drawing.name)
        return list(names)

    def _on(self, background: str) -> tuple[np.ndarray, np.ndarray]:
        if background not in self._described:
            rows = []
            side = round(0.74 * WORKING_SIZE)
            corner = (WORKING_SIZE - side) // 2
            for pixels in self.drawings.pixels:
                image = Image.new("RGB", (WORKING_SIZE, WORKING_SIZE), BACKGROUNDS[background])
                small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
                image.paste(small, (corner, corner), small)
                seen = _look(np.asarray(image) / np.float32(255)).everything
                rows.append(seen.description if seen else np.zeros_like(rows[-1]))
            described = np.stack(rows)
            self._described[background] = described, (described**2).sum(-1)
        return self._described[background]

    def mistake(self, request: Request, sight: Sight, best: int = 1) -> str | None:
        """What is wrong with a picture of drawings, None when nothing is.

        A thing is right when its name is among the `best` nearest; several of a kind, where each is smaller, when it is
        among the five nearest. The rule for positions is GenEval's.
        """
        if request.background is not None and sight.background != request.background:
            return f"the background is {sight.background}, not {request.background}"
        if sight.everything is None:
            return "there is nothing"
        wanted = sum(item.count for item in request.items)
        if wanted == 1:
            names = self.ranked(sight.everything, sight.background, alone=True)[:best]
            name = request.items[0].shape
            return None if name in names else f"it looks like {names[0]}, not {name}"
        if len(sight.things) != wanted:
            return f"there are {len(sight.things)} things, not {wanted}"
        best = max(best, 5) if len(request.items) == 1 else best
        seen = [self.ranked(thing, sight.background, alone=False)[:best] for thing in sight.things]
        if len(request.items) == 1:
            name = request.items[0].shape
            other = next((names for names in seen if name not in names), None)
            return other and f"one looks like {other[0]}, not {name}"
        return _pair(request, sight.things, seen)


def _pair(request: Request, things: Sequence[Thing], seen: Sequence[list[str]]) -> str | None:
    first, second = (item.shape for item in request.items)
    for one, other in ((0, 1), (1, 0)):
        if first in seen[one] and second in seen[other]:
            if request.relation in (None, *relations(things[one].place, things[other].place)):
                return None
            return f"the {first} is not {request.relation} the {second}"
    found = Counter(names[0] for names in seen)
    return f"it looks like {' and '.join(found)}, not {first} and {second}"
