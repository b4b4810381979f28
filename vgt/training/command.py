"""`python -m vgt train captioner|autoencoder|layout|generator|head|lora CONFIG.toml`, and recipes, which run all."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from .recipes import RECIPES
from .settings import Settings, TrainingError

STAGES = ("captioner", "autoencoder", "layout", "generator", "head", "lora")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `train`."""
    parser.add_argument("stage", choices=(*STAGES, *RECIPES), help="what to train; tiny, drawings: a whole model")
    parser.add_argument("config", type=Path, help="the stage's .toml; for a whole model, the folder to work in")
    parser.add_argument("--out", type=Path, help="the folder to train into, instead of the configuration's")
    parser.add_argument("--until", type=int, help="stop with a checkpoint after this many steps of the schedule")
    parser.add_argument("--processes", type=int, default=1, help="a whole model: how many processes train it")
    parser.add_argument("--workers", type=int, default=0, help="a whole model: how many more processes draw pictures")


def run(options) -> None:
    """Run one command. Raises ValueError or OSError with a message for the user."""
    if options.stage in RECIPES:
        from .recipes import run_all

        check_whole("--processes", options.processes)
        if options.workers < 0:
            raise TrainingError(f"--workers is {options.workers}; it must be 0 or more.")
        try:
            return run_all(options.stage, options.config, options.processes, options.workers)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
    config = read_config(options.config)
    out = options.out or (Path(config["out"]) if "out" in config else None)
    if out is None:
        raise TrainingError(f'{options.config} names no folder to train into; add out = "…", or give --out.')
    from .processes import join_torchrun

    settings = config.get("training")
    join_torchrun(settings.get("device") if isinstance(settings, dict) else None)
    run_stage(options.stage, config, out, options.until)


def run_stage(name: str, config: dict, out: Path, until: int | None) -> None:
    """Run one of STAGES in this process, and in the others of its group; after Ctrl-C say so and raise SystemExit."""
    from importlib import import_module

    stage = import_module(f".{name}_command", __package__)
    try:
        stage.run(config, out, until)
    except KeyboardInterrupt as stop:
        print(f"vgt: {str(stop) or 'stopped; the same command goes on with what is there'}", file=sys.stderr)
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


def require(config: dict, *names: str) -> None:
    """Raises TrainingError for the first of `names`, with dots for tables, that a configuration lacks."""
    for name in names:
        found = config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            raise TrainingError(f"The configuration lacks {name}; see vgt/training/README.md.")


def read_table(config: dict, name: str, kind: type, **more):
    """A table of a configuration, and `more`, as a dataclass. Raises TrainingError for settings that do not suit it."""
    table = config.get(name, {})
    if not isinstance(table, dict):
        raise TrainingError(f"{name} is {table!r}; it must be a table, [{name}].")
    table = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    known = {field.name for field in fields(kind) if field.init} - more.keys()
    if unknown := sorted(table.keys() - known):
        raise TrainingError(
            f"The [{name}] table holds the unknown {unknown[0]!r}; it knows {', '.join(sorted(known))}."
        )
    try:
        return kind(**table, **more)
    except TypeError as error:
        raise TrainingError(f"The [{name}] table is incomplete ({error}).") from error


def check_whole(name: str, value) -> None:
    """Raises TrainingError unless a setting is a whole number from 1 on."""
    if not isinstance(value, int) or value < 1:
        raise TrainingError(f"{name} is {value!r}; it must be a whole number from 1 on.")


def read_settings(config: dict) -> Settings:
    """The [training] table, with the processor settled. Raises TrainingError for settings that do not suit."""
    import torch

    require(config, "training.steps", "training.batch_size", "training.learning_rate")
    cuda = torch.cuda.is_available()
    table = dict(config["training"])
    table.setdefault("device", f"cuda:{torch.cuda.current_device()}" if cuda else "cpu")
    table.setdefault("dtype", "bfloat16" if cuda else "float32")
    settings = read_table({"training": table}, "training", Settings)
    for name in ("steps", "batch_size", "accumulation", "log_every", "save_every", "sheet_every"):
        check_whole(f"training.{name}", getattr(settings, name))
    if settings.dtype not in ("float32", "bfloat16"):
        raise TrainingError(f"training.dtype is {settings.dtype!r}; it must be float32 or bfloat16.")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return settings
