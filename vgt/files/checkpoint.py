"""A model as read from disk, and how a module gets its tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig
from ..latent_rgb import LatentRGB
from ..sampling import SamplingSettings
from .layout import StackedRows


class CheckpointError(ValueError):
    """A model file cannot be used. The message names the file, what is wrong, and what it was taken for."""

    __module__ = "vgt"  # where it is imported from; the host shows this in its log and API


@dataclass
class Checkpoint:
    """A model as read from disk."""

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor | StackedRows]
    """Under our module names: `autoencoder.…` and `generator.…`; memory-mapped where the file allows it."""
    tokenizer_json: bytes | None
    """None for a tokenizer-only model, or where the base model's tokenizer files are absent."""
    recommended: SamplingSettings = field(default_factory=SamplingSettings)
    """How the model's maker would draw; what is open in it is as published."""
    vocabulary: tuple[str, ...] | None = None
    """The words that its training's captions use, in lower case; None where they were not counted."""
    latent_rgb: LatentRGB | None = None
    """The colour of a token as a linear function of its latent, for previews; None where it was not fitted."""
    attribution: str | None = None
    """Whose pictures it was trained on, and their licences, where those ask to be named."""

    def state(self, part: str) -> dict[str, Tensor | StackedRows]:
        """The tensors of one part, "autoencoder" or "generator", under the names inside it."""
        prefix = part + "."
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def load_state(
    module: torch.nn.Module,
    state: dict[str, Tensor | StackedRows],
    path: Path,
    taken_for: str,
    device: torch.device | str = "cpu",
) -> None:
    """Give `module` (built on the meta device or not) its weights, each in the dtype the module was built with.

    Each tensor goes from the file to the device by itself. On the CPU those already in that dtype are taken as they
    are, memory-mapped. Raises CheckpointError naming `path` when
    tensors are missing, unexpected or misshapen.
    """
    expected = module.state_dict()
    check_fit(expected, state, path, taken_for)
    state = {name: tensor.to(device, expected[name].dtype) for name, tensor in state.items()}
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False)


def check_fit(expected: dict[str, Tensor], state: dict[str, Tensor | StackedRows], path: Path, taken_for: str) -> None:
    """Raise CheckpointError unless `state` holds the `expected` tensors in their shapes, and no others."""
    problems = []
    if missing := sorted(expected.keys() - state.keys()):
        problems.append(f"{some(missing)} missing")
    if unexpected := sorted(state.keys() - expected.keys()):
        problems.append(f"{some(unexpected)} unexpected")
    misshapen = sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
    if misshapen:
        shapes = f"{str(list(state[misshapen[0]].shape))[:80]} instead of {list(expected[misshapen[0]].shape)}"
        problems.append(f"{some(misshapen)} misshapen ({shapes})")
    if problems:
        raise CheckpointError(f"{path.name} does not fit {taken_for}: {'; '.join(problems)}.")


def some(names: list[str]) -> str:
    """The first of these tensor names with their verb, as in "a, b, c and 4 more tensors are"."""
    shown = ", ".join(re.sub(r"\s", " ", name)[:80] for name in names[:3])
    return (
        f"{shown} and {len(names) - 3} more tensors are"
        if len(names) > 3
        else f"{shown} {'are' if names[1:] else 'is'}"
    )
