"""A whole model, one stage after the other: `python -m vgt train tiny FOLDER`, and the same for `drawings`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .settings import TrainingError

CONFIGS = Path(__file__).parent / "configs"
RECIPES = ("tiny", "drawings")
_STAGES = (
    ("captioner", "captioner"),
    ("autoencoder", "autoencoder-1"),
    ("autoencoder", "autoencoder-2"),
    ("autoencoder", "autoencoder-3"),
    ("generator", "generator-1"),
    ("generator", "generator-2"),
)


def run_all(recipe: str, folder: Path, processes: int) -> None:
    """Train every stage of a recipe in `folder`; what is done is skipped, what was interrupted goes on.

    "drawings" reads its pictures from `folder`/drawings, which `python -m vgt.scenes drawings` makes.
    Raises TrainingError when a stage fails (its own message has been printed), KeyboardInterrupt after Ctrl-C.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stage, part in _STAGES:
        name = f"{recipe}-{part}"
        print(f"{name} → {folder / name}", flush=True)
        # The configurations name their inputs relative to the folder they are run in.
        command = [*_launcher(processes), "train", stage, str(CONFIGS / f"{name}.toml"), "--out", name]
        if status := _run(command, folder):
            raise TrainingError(f"{name} ended with status {status}; run the same command to go on from there.")


def _run(command: list[str], folder: Path) -> int:
    """The command's status. Raises KeyboardInterrupt after Ctrl-C, which the command got too: when it has ended."""
    with subprocess.Popen(command, cwd=folder, env=_environment()) as stage:
        try:
            return stage.wait()
        except KeyboardInterrupt:
            stage.wait()  # it is writing its checkpoint
            raise


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "vgt"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", *torchrun, "-m", "vgt"]


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join((root, os.environ["PYTHONPATH"])) if os.environ.get("PYTHONPATH") else root
    # glibc would give every large tensor back to the system, and clear its pages again for the next one.
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**28)}
    return {
        **os.environ,
        **keep,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }
