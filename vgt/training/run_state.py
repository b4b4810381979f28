"""What a run of training needs to go on after a break: last.pt."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from ..files.durable import put_in_place
from .settings import TrainingError
from .sharding import load_shared, whole

CHECKPOINT = "last.pt"


class RunState:
    """Keeps all that a run needs to go on, in one file that appears under its name only when it is whole."""

    def __init__(self, trained: nn.Module, auxiliary: nn.Module | None, optimisers, average, about: dict, folder: Path):
        self.parts = {"stage": trained, "average": average, "auxiliary": auxiliary}
        self.parts.update({f"optimiser {index}": optimiser for index, optimiser in enumerate(optimisers)})
        self.about = about
        self.path = folder / CHECKPOINT
        self.saved = 0

    def save(self, step: int, rank: int) -> None:
        self.saved = step
        content = {name: whole(part.state_dict()) for name, part in self.parts.items() if part is not None}
        if rank:
            return
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            torch.save({**content, "step": step, "about": self.about}, partial)
            put_in_place(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)

    def resume(self) -> int:
        if not self.path.is_file():
            return 0
        # through main memory: beside the weights a device has no room for all of them again, averages and all
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        if (difference := _difference(content["about"], self.about)) is not None:
            name, was, now = difference
            raise TrainingError(
                f"{self.path} was made with another configuration ({name} was {was!r}, is {now!r}); put the setting "
                "back, or train into another folder."
            )
        for name, part in self.parts.items():
            if part is not None:
                load_shared(part, content[name])
        self.saved = content["step"]
        return self.saved


def _difference(was: dict, now: dict, prefix: str = ""):
    for name in sorted(was.keys() | now.keys()):
        one, other = was.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            if (found := _difference(one, other, f"{prefix}{name}.")) is not None:
                return found
        elif one != other:
            return prefix + name, one, other
    return None
