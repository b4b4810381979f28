"""Sampling settings as options of a command line."""

from __future__ import annotations

import argparse

from .run.flow import SOLVERS
from .run.order import ORDERS
from .run.plan import DECODINGS, GROUPINGS
from .sampling import CFG_SCHEDULES, PUBLISHED, SamplingSettings

_OPTIONS = {
    "width": {"type": int, "help": "pixels"},
    "height": {"type": int, "help": "pixels"},
    "seed": {"type": int, "help": "of the noise, and of the order of tokens"},
    "cfg": {"type": float, "help": "classifier-free guidance scale"},
    "cfg_schedule": {"choices": CFG_SCHEDULES, "help": "linear falls towards 1 while the picture fills up"},
    "tokens_per_step": {"type": int, "help": "tokens drawn at once"},
    "order": {"choices": ORDERS, "help": "of the tokens"},
    "decoding": {"choices": DECODINGS, "help": "as the authors draw, or as the model was trained"},
    "grouping": {"choices": GROUPINGS, "help": "as many tokens in every step, or from few to many"},
    "steps": {"type": int, "help": "flow steps a token"},
    "solver": {"choices": SOLVERS, "help": "of the flow"},
    "last_step": {"type": float, "help": "length of the last flow step"},
    "temperature": {"type": float, "help": "scales the noise"},
}


def add_settings(parser: argparse.ArgumentParser, published: SamplingSettings = PUBLISHED) -> None:
    """Add an option for every choice of a run. Options that are left out are the model's own, then `published`."""
    values = published.to_dict()
    for name, how in _OPTIONS.items():
        text = f"{how['help']} (default: the model's own; published: {values[name]})"
        parser.add_argument(f"--{name.replace('_', '-')}", **{**how, "help": text})


def read_settings(
    options: argparse.Namespace, recommended: SamplingSettings, published: SamplingSettings = PUBLISHED
) -> SamplingSettings:
    """The complete settings of a run: the options that were given, then the model's, then the published ones.

    Raises ValueError for a value that no model can have.
    """
    given = {name: value for name in _OPTIONS if (value := getattr(options, name)) is not None}
    return SamplingSettings.from_dict({**published.to_dict(), **recommended.to_dict(), **given})
