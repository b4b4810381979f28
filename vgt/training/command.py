"""`python -m vgt train captioner|autoencoder|generator CONFIG.toml`, and `tiny`, which runs all of them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from .settings import Settings, TrainingError

STAGES = ("captioner", "autoencoder", "generator")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `train`."""
    parser.add_argument("stage", choices=(*STAGES, "tiny"), help="what to train; tiny: all of VGT-Tiny, one by one")
    parser.add_argument("config", type=Path, help="the stage's .toml; for tiny, the folder to work in")
    parser.add_argument("--out", type=Path, help="the folder to train into, instead of the configuration's")
    parser.add_argument("--until", type=int, help="stop with a checkpoint after this many steps of the schedule")
    parser.add_argument("--processes", type=int, default=1, help="tiny: processes, through torchrun")


def run(options) -> None:
    """Run one command. Raises ValueError or OSError with a message for the user."""
    if options.stage == "tiny":
        from .tiny import run_all

        try:
            return run_all(options.config, options.processes)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    config = read_config(options.config)
    out = options.out or (Path(config["out"]) if "out" in config else None)
    if out is None:
        raise TrainingError(f'{options.config} names no folder to train into; add out = "…", or give --out.')
    from importlib import import_module

    from .trainer import start_processes

    start_processes()

    stage = import_module(f".{options.stage}_command", __package__)
    try:
        stage.run(config, out, options.until)
    except KeyboardInterrupt as stop:
        print(f"vgt: {stop}", file=sys.stderr)
        raise SystemExit(130) from None


def read_config(path: Path) -> dict:
    """A .toml as plain data. Raises TrainingError when it cannot be read."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as a configuration ({error}).") from error


def read_objective(config: dict, kind: type):
    """The [objective] table as a stage's `Objective`. Raises TrainingError for settings that do not exist."""
    try:
        return kind(**config.get("objective", {}))
    except TypeError as error:
        raise TrainingError(f"The [objective] table holds a setting that does not exist ({error}).") from error


def read_settings(config: dict) -> Settings:
    """The [training] table, with the processor settled. Raises TrainingError for settings that do not exist."""
    import torch

    table = dict(config.get("training", {}))
    unknown = table.keys() - {field.name for field in fields(Settings)}
    missing = {"steps", "batch_size", "learning_rate"} - table.keys()
    if unknown or missing:
        what = f"holds the unknown {sorted(unknown)[0]!r}" if unknown else f"lacks {sorted(missing)[0]!r}"
        raise TrainingError(f"The [training] table {what}; see vgt/training/README.md.")
    if "betas" in table:
        table["betas"] = tuple(table["betas"])
    cuda = torch.cuda.is_available()
    table.setdefault("device", f"cuda:{torch.cuda.current_device()}" if cuda else "cpu")
    table.setdefault("dtype", "bfloat16" if cuda else "float32")
    settings = Settings(**table)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return settings
