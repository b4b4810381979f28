"""What captions of drawings say of each place of their pictures: which thing lies there, and which words name it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..scenes import world
from ..scenes.drawing_captions import find_names
from ..scenes.drawings import BACKGROUNDS, DrawingsDataset, DrawnScene

MEASURES = 7
"""Numbers that tell what a place shows, beside the thing's look."""
_MARGIN = 0.02
"""A place belongs to a thing whose square, wider by this on each side, holds its centre; in sides of the picture."""


class LayoutDataset(Dataset):
    """Items of a data set of drawings, without pictures: (caption, said, names, drawn, measures).

    said: int64 [2, 2], from which to which character the caption names its first and second thing; zeros where there
    is none. names: int64 [2], the number in `names` of what each is called; -1: none. drawn: int64 [P], which of the
    two each of the picture's P places shows, row by row; -1: none of them. measures: float32 [P, 7], of a place: 1
    where a thing is, there the place's x and y in the thing, each from -1 to 1, and the thing's side as a fraction of
    the picture's (elsewhere zeros), and the background, in [-1, 1].
    """

    def __init__(self, drawings: DrawingsDataset, grid: int):
        """grid: tokens a side."""
        self.drawings, self.grid = drawings, grid
        self.names = list(dict.fromkeys(drawing.name for drawing in drawings.drawings.all))
        self._number = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
        scene, _, caption = self.drawings.scene(index)
        said, names = torch.zeros(2, 2, dtype=torch.long), torch.full((2,), -1)
        if isinstance(scene, DrawnScene):
            asked = [item.shape for item in scene.request.items]
            said[: len(asked)] = torch.tensor(find_names(caption, asked))
            names[: len(asked)] = torch.tensor([self._number[name] for name in asked])
            things = [(asked.index(self.drawings.drawings.all[thing.row].name), thing) for thing in scene.placed]
            colour = BACKGROUNDS[scene.background]
        else:
            things, colour = [(-1, thing) for thing in scene.objects], world.BACKGROUNDS[scene.background]
        return caption, said, names, *self._places(things, colour)

    def _places(self, things, colour) -> tuple[Tensor, Tensor]:
        """drawn and measures of things, each with its number."""
        centres = (torch.arange(self.grid) + 0.5) / self.grid
        drawn = torch.full((self.grid, self.grid), -1)
        measures = torch.zeros(self.grid, self.grid, MEASURES)
        measures[..., 4:] = torch.tensor(colour) / 127.5 - 1
        for number, thing in things:
            reach = thing.size / 2 + _MARGIN
            y, x = torch.meshgrid((centres - thing.y) / reach, (centres - thing.x) / reach, indexing="ij")
            inside = (x.abs() <= 1) & (y.abs() <= 1)
            drawn[inside] = number
            measures[inside, 0], measures[inside, 3] = 1.0, thing.size
            measures[inside, 1], measures[inside, 2] = x[inside], y[inside]
        return drawn.flatten(), measures.flatten(0, 1)
