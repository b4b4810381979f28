"""Files that appear under their name only when they are whole, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def put_in_place(partial: str | Path, path: str | Path) -> None:
    """Rename a written file to its name, once its contents are on the disk: else the name can survive them."""
    with open(partial, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
