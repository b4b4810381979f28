"""Steering a run from a command line: regions, changes, an order map, stopping and going on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

LATENT_KEY = "latent"
_MODEL_KEY = "vgt.model"
"""In the metadata of a latent's file: the name of the model that drew it."""


def add_steering(parser: argparse.ArgumentParser) -> None:
    """Add the options that steer a run; see run/control.py."""
    steering = parser.add_argument_group("steering")
    steering.add_argument(
        "--region",
        nargs="+",
        action="append",
        default=[],
        metavar=("PROMPT", "MASK [STRENGTH [FEATHER]]"),
        help="a prompt for the part of the picture where MASK, a picture, is bright; later ones lie over earlier ones",
    )
    steering.add_argument(
        "--change",
        nargs=2,
        action="append",
        default=[],
        metavar=("START", "PROMPT"),
        help="another prompt from this share of the tokens on",
    )
    steering.add_argument(
        "--cfg-change",
        nargs=2,
        action="append",
        default=[],
        type=float,
        metavar=("START", "CFG"),
        help="another guidance scale from this share of the tokens on",
    )
    steering.add_argument("--order-map", type=Path, help="a picture; what is bright in it is drawn first")
    steering.add_argument("--plan", type=Path, metavar="PNG", help="write a picture of the run: order, prompts, spread")
    steering.add_argument(
        "--stop-at", type=float, default=1.0, help="stop at this share of the tokens; needs --latent (default: 1)"
    )
    steering.add_argument("--latent", type=Path, help="write the latent to this .safetensors")
    steering.add_argument("--go-on", type=Path, help="go on with a latent that --stop-at left")


def read_steering(options: argparse.Namespace, grid: tuple[int, int]) -> dict:
    """The arguments of `generate` that the options ask for; grid: height and width of the picture in tokens.

    Raises ValueError for values that cannot be, OSError for files that cannot be read.
    """
    import torch.nn.functional as F

    from .run.control import Change, Region

    if options.stop_at < 1 and options.latent is None:
        raise ValueError("--stop-at leaves a part of the picture undrawn; give --latent too, to go on with it.")
    regions = []
    for prompt, *rest in options.region:
        if not 1 <= len(rest) <= 3:
            raise ValueError(f"--region {prompt!r} takes a mask, and perhaps strength and feather, not {rest}.")
        strength, feather = _number(rest[1:2], float, 1.0), _number(rest[2:3], int, 0)
        regions.append(Region(prompt, _brightness(Path(rest[0])), strength, feather))
    changes = [Change(_number([start], float), prompt=prompt) for start, prompt in options.change]
    for start, cfg in options.cfg_change:
        same = next((change for change in changes if change.start == start), None)
        if same is None:
            changes.append(Change(start, cfg=cfg))
        else:
            changes[changes.index(same)] = Change(start, same.prompt, cfg)
    changes.sort(key=lambda change: change.start)
    steering = {"regions": regions, "changes": changes, "stop_at": options.stop_at}
    if options.order_map is not None:
        steering["order_map"] = F.adaptive_avg_pool2d(_brightness(options.order_map)[None, None], grid)[0, 0]
    if options.go_on is not None:
        steering["latent"], begun_with = _read_latent(options.go_on)
        if begun_with not in (None, options.model.name):
            said = f"vgt: {options.go_on} was begun with {begun_with}; here it is a picture to repaint"
            print(said, file=sys.stderr)
    return steering


def write_latent(latent, path: Path, model: str) -> None:
    """Write a latent [B, 32, h, w] for --go-on, and the name of the model that drew it."""
    from safetensors.torch import save_file

    save_file({LATENT_KEY: latent.cpu().contiguous()}, path, {_MODEL_KEY: model})
    print(path)


def _read_latent(path: Path):
    """The latent, and the model that drew it; None where the file does not say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(LATENT_KEY), (file.metadata() or {}).get(_MODEL_KEY)
    except SafetensorError as error:
        raise ValueError(f"{path} holds no latent; give a file that --latent wrote.") from error


def _brightness(path: Path):
    """A picture as brightness [H, W] in [0, 1]."""
    import torch

    from .picture_files import read_picture

    grey = read_picture(path).convert("L")
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width) / 255


def _number(given: list[str], kind: type, default=None):
    try:
        return kind(given[0]) if given else default
    except ValueError as error:
        raise ValueError(f"{given[0]!r} is no number; see --help.") from error
