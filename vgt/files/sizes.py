"""What the shapes of a state dict tell of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

MAX_LAYERS = 512


class LayoutError(ValueError):
    """The tensors are not those of a model that VGT knows, or lack what is needed to tell which."""


class Sizes:
    """Shapes and layer counts of tensors. Its methods raise LayoutError for what is not there."""

    def __init__(self, tensors: Mapping, prefix: str = ""):
        """tensors: anything with a shape, by name; prefix: what is put before every name that is asked for."""
        self._tensors, self._prefix = tensors, prefix

    def below(self, prefix: str) -> Sizes:
        return Sizes(self._tensors, self._prefix + prefix)

    def has(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        if not self.has(name):
            raise LayoutError(f"it lacks the tensor {self._prefix}{name}")
        shape = tuple(self._tensors[self._prefix + name].shape)
        if len(shape) != dimensions:
            raise LayoutError(f"the tensor {self._prefix}{name} has {len(shape)} dimensions instead of {dimensions}")
        return shape

    def count(self, name: str) -> int:
        """How many layers `name` has: names go on with an index. As many as there are, whatever the highest says."""
        start = self._prefix + name
        found = {key[len(start) :].split(".")[0] for key in self._tensors if key.startswith(start)}
        count = sum(index.isdecimal() for index in found)
        if count > MAX_LAYERS:
            raise LayoutError(f"it has {count} layers {start}…; no model has so many")
        return count


def heads_of(config: dict, key: str, width: int, published: dict[int, int]) -> int:
    """Head counts cannot be read off tensors: from `config`, or those of the published model of that width."""
    if key in config:
        return config[key]
    if width not in published:
        raise LayoutError(
            "its widths are of no published model, and base/config.json, which tells its heads, is not there"
        )
    return published[width]


def merge_of(sizes: Sizes, name: str, width: int) -> int:
    """Patches along a token's side: the tensor `name` [merge² * width] is of the layer that joins them."""
    (joined,) = sizes.shape(name, 1)
    merge = math.isqrt(joined // max(width, 1))
    if not merge or merge**2 * width != joined:
        raise LayoutError(f"the tensor {name} has {joined} numbers, which are no square of patches of {width}")
    return merge


def section(config: dict, *names: str) -> dict:
    """The first of the named tables that a config.json holds, {} without one. Raises LayoutError if it is no table."""
    name = next((name for name in names if name in config), None)
    found = config.get(name, {})
    if not isinstance(found, dict):
        raise LayoutError(f"base/config.json beside it holds a {name} that is no configuration")
    return found
