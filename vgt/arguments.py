"""Sampling settings as options of a command line."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from .run.flow import SOLVERS
from .run.order import ORDERS
from .run.plan import DECODINGS, GROUPINGS
from .sampling import CFG_SCHEDULES, PRESETS, PUBLISHED, SamplingSettings

_OPTIONS = {
    "width": {"type": int, "help": "pixels"},
    "height": {"type": int, "help": "pixels"},
    "seed": {"type": int, "help": "of the noise, and of the order of tokens"},
    "cfg": {"type": float, "help": "classifier-free guidance scale"},
    "cfg_schedule": {"choices": CFG_SCHEDULES, "help": "linear falls towards 1 while the picture fills up"},
    "cfg_end": {"type": float, "help": "share of the picture from which guidance is off"},
    "tokens_per_step": {"type": int, "help": "tokens drawn at once"},
    "order": {"choices": ORDERS, "help": "of the tokens"},
    "decoding": {"choices": DECODINGS, "help": "as the authors draw, or as the model was trained"},
    "grouping": {"choices": GROUPINGS, "help": "as many tokens in every step, or from few to many"},
    "steps": {"type": int, "help": "flow steps a token"},
    "final_steps": {"type": int, "help": "what the steps fall to while the picture fills up"},
    "solver": {"choices": SOLVERS, "help": "of the flow"},
    "last_step": {"type": float, "help": "length of the last flow step"},
    "shift": {"type": float, "help": "above 1: flow steps lie closer together near the noise"},
    "temperature": {"type": float, "help": "scales the noise"},
}


def add_settings(parser: argparse.ArgumentParser, published: SamplingSettings = PUBLISHED) -> None:
    """Add an option for every choice of a run. Options that are left out are the model's own, then `published`."""
    values = published.to_dict()
    parser.add_argument("--preset", choices=PRESETS, help="how to use the flow head; options given beside it win")
    for name, how in _OPTIONS.items():
        text = f"{how['help']} (default: the model's own; published: {values[name]})"
        parser.add_argument(f"--{name.replace('_', '-')}", **{**how, "help": text})


def read_settings(
    options: argparse.Namespace, recommended: SamplingSettings, published: SamplingSettings = PUBLISHED
) -> SamplingSettings:
    """The complete settings of a run: the options that were given, then those of the preset, then the model's, then the
    published ones.

    Another solver, or other steps, do not go with what a preset or a model says of steps. Raises ValueError for a value
    that no model can have.
    """
    given = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    base = recommended.over(published)
    if options.preset is not None:
        base = PRESETS[options.preset].over(base)
    if "solver" in given and given["solver"] != base.flow.solver:
        base = replace(base, flow=published.flow)
    elif "steps" in given:
        base = replace(base, flow=replace(base.flow, final_steps=None))
    return SamplingSettings.from_dict({**base.to_dict(), **given})


def read_strength(argument: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH → the file and the strength, 1 where none is given. A file's name may hold colons."""
    file, colon, strength = argument.rpartition(":")
    try:
        return (Path(file), float(strength)) if colon else (Path(argument), 1.0)
    except ValueError:
        return Path(argument), 1.0
