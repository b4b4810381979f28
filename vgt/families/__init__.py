"""Vision-language models that VGT can tune and draw with: one file a family, and no other file tells two apart.

A family is found by its file being here. A file whose name begins with _ is none, but what several of them share.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..files.sizes import LayoutError

if TYPE_CHECKING:
    from ._family import Family


@cache
def names() -> tuple[str, ...]:
    """The families of this version."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_")))


def family(name: str) -> Family:
    """A family by its name. Raises ValueError for one that this version does not know."""
    if not isinstance(name, str):
        raise TypeError("a family's name is a text")
    if name not in names():
        raise ValueError(f"its family {name[:40]!r} is none that this version knows ({', '.join(names())})")
    return import_module(f".{name}", __name__).FAMILY


def families() -> list[Family]:
    """All of them; those that serve what no other one reads come last."""
    return sorted(map(family, names()), key=lambda found: found.fallback)


def recognise_base(config: dict) -> Family:
    """The family of the base model with this config.json. Raises LayoutError for one that nothing here reads."""
    library = find_spec("transformers") is not None  # which a fallback needs
    found = next((one for one in families() if (library or not one.fallback) and one.reads_base(config)), None)
    if found is None:
        reason = "is of none of VGT's families"
        if not library:
            reason = "needs the transformers library (pip install transformers)"
        raise LayoutError(f"it holds a model of type {config.get('model_type')!r}, which {reason}")
    return found


def recognise_published(tensors: Mapping, config: dict) -> Family:
    """The family of a state dict in the published layout, with the config.json of its base model ({} without one).

    Raises LayoutError for one that is no family's.
    """
    bare = {name.removeprefix("vgt_ae."): tensor for name, tensor in tensors.items()}
    found = next((found for found in families() if found.reads_published(bare, config)), None)
    if found is None:
        titles = " or ".join(found.title for found in families() if not found.fallback)
        raise LayoutError(f"it is not a VGT model (no vision tower of {titles} in it)")
    return found
