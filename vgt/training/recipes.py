"""A whole model, one stage after the other: `python -m vgt train tiny FOLDER`, and the same for `drawings`."""

from __future__ import annotations

import os
from pathlib import Path

from .settings import TrainingError

CONFIGS = Path(__file__).parent / "configs"
_PARTS = ("captioner", "autoencoder-1", "autoencoder-2", "autoencoder-3")
RECIPES = {
    "tiny": (*_PARTS, "generator-1", "generator-2"),
    "drawings": (*_PARTS, "layout", "generator-1", "generator-2", "generator-3", "generator-4", "head"),
}
"""The stages of each, which are called as their command, with a number where there are several."""


def run_all(recipe: str, folder: Path, processes: int, workers: int = 0) -> None:
    """Train every stage of a recipe in `folder`; what is done is skipped, what was interrupted goes on.

    workers: how many more processes draw the pictures; a GPU waits for them otherwise.
    "drawings" reads its pictures from `folder`/drawings, which `python -m vgt.scenes drawings` makes.
    Raises TrainingError when a stage fails (its own message has been printed), KeyboardInterrupt after Ctrl-C.
    """
    from .command import read_config
    from .processes import together

    folder.mkdir(parents=True, exist_ok=True)
    for part in RECIPES[recipe]:
        name = f"{recipe}-{part}"
        print(f"{name} → {folder / name}", flush=True)
        config = read_config(CONFIGS / f"{name}.toml")
        config["training"].setdefault("workers", workers)
        # New processes for each, so that none begins with the memory that another has left.
        status = together(processes, config["training"].get("device"), _stage, part, config, folder, name)
        if status:
            raise TrainingError(f"{name} ended with status {status}; run the same command to go on from there.")


def _stage(part: str, config: dict, folder: Path, name: str) -> None:
    from .command import run_stage

    os.chdir(folder)  # the configurations name their inputs relative to the folder they are run in
    run_stage(part.partition("-")[0], config, Path(name), None)
