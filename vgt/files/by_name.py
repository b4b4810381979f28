"""Published models by name where no ComfyUI keeps them: made on first use, kept in the user's cache folder.

Nothing is looked up, downloaded or made before a model is asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from .hub import PUBLISHED, obtain

HOME = "VGT_HOME"
"""The environment variable that names another folder."""


def models_folder() -> Path:
    """Where the converted files are kept: what VGT_HOME names, else vgt in the user's cache folder (~/.cache)."""
    if named := os.environ.get(HOME):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vgt"


def find(model: str | Path) -> Path:
    """The file of a published model, downloaded and converted if it is not there yet, with a bar on stderr.

    Whatever is no published name, or is there under that name, is a path and comes back as it is. Files put into
    `models_folder()/NAME/` by hand are used first. Raises HubError, and CheckpointError when what was published is no
    whole model.
    """
    path, name = Path(model), str(model)
    if name not in PUBLISHED or path.exists():
        return path
    from tqdm import tqdm

    from .reading import convert

    with tqdm(unit="B", unit_scale=True, delay=0.5, desc=name) as bar:

        def progress(done: int, total: int, _what: str) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return obtain(name, models_folder(), convert, progress)
