"""python -m vgt.scenes drawings OUT: render the folder of drawings that training and evaluation read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .drawing_files import PACKAGES, build


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors a user can mend are one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m vgt.scenes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    drawings = commands.add_parser("drawings", help="render two free sets of emoji")
    drawings.add_argument("out", type=Path, help="the folder to write")
    drawings.add_argument(
        "--packages",
        type=Path,
        default=Path("."),
        help=f"where npm installed {', '.join(PACKAGES)} (npm install --ignore-scripts --prefix FOLDER …)",
    )
    options = parser.parse_args(arguments)
    try:
        count = build(options.packages, options.out)
    except (ValueError, OSError) as error:
        print(f"vgt: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {count} drawings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
