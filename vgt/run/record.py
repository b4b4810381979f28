"""How a run went, and a picture of it: which token came when, from which prompt, and how open it still was."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .plan import Plan

CELL = 48
"""Pixels of a token's cell in the picture."""


@dataclass
class RunRecord:
    """Given to `generate`, it is filled in."""

    plan: Plan | None = None
    grid: tuple[int, int] = (0, 0)
    """Height and width in tokens."""
    spread: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """float32 [B, T]: how far apart the draws of a token lie, as a share of how far apart all tokens lie. 0: what was
    there before decides the token; 1: it says nothing of it. A token's mean square is 1 over all tokens, so it is
    1 - mean square of what the flow head expects before it draws. 0 as well where nothing was drawn."""

    def picture(self, image: int = 0):
        """A PIL image, CELL pixels a token: brightness falls with the step that draws a token, its number stands in it,
        the hue is that of its prompt (a seam's is that of the weightiest), and the bar below is the spread. Tokens that
        were given are grey.
        """
        from PIL import Image, ImageDraw

        height, width = self.grid
        canvas = Image.new("RGB", (width * CELL, height * CELL), (96, 96, 96))
        brush = ImageDraw.Draw(canvas)
        steps = self.plan.steps
        for index, step in enumerate(steps):
            mixes = self.plan.mixes[index] if self.plan.mixes else [((0, 1.0),)] * len(step.group)
            for place, mix in zip(step.group, mixes):
                left, top = place % width * CELL, place // width * CELL
                if index >= self.plan.given:
                    prompt = max(mix, key=lambda part: part[1])[0]
                    hue, light = (0.58 + 0.31 * prompt) % 1, 0.95 - 0.75 * index / max(1, len(steps) - 1)
                    fill = tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, light, 0.6))
                    brush.rectangle((left, top, left + CELL - 2, top + CELL - 2), fill)
                    bar = round(float(self.spread[image, place]) * (CELL - 10))
                    brush.rectangle((left + 4, top + CELL - 10, left + 4 + bar, top + CELL - 7), (235, 70, 60))
                    ink = (0, 0, 0) if light > 0.5 else (255, 255, 255)
                else:
                    ink = (255, 255, 255)
                brush.text((left + CELL // 2, top + CELL // 2 - 4), str(index + 1), ink, anchor="mm")
        return canvas
