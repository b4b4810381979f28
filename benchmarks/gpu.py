"""Everything that waits for a GPU, part by part: `python3 scripts/dev.py gpu`.

Each part is a process of its own that ends within 8 minutes; what is done already, for this commit and device, is not
done again. At the end one table. Where there is no CUDA device a small form of the same runs, and keeps nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import platform
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from .gpu_parts import DEVICE, DTYPE, LIMIT, PARTS, ROOT, SMALL, note, small_form
from .report import HEAD, KEPT, line, load, save, write
from .timing import copy_bandwidth, finish


def run(folder: Path, names: list[str]) -> list[str]:
    """Do the parts that are not done, and print the table; returns the names of those that failed."""
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    device = f"CPU, {torch.get_num_threads()} threads" if SMALL else torch.cuda.get_device_name()
    of = f"{revision} {device}"
    folder.mkdir(parents=True, exist_ok=True)
    rows, failed = [], []
    for name in names:
        path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        done = json.loads(path.read_text()) if path.is_file() else {}
        if done.get("of") != of:
            print(f"{name} …", flush=True)
            path.unlink(missing_ok=True)
            command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--to", str(path)]
            try:
                ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
                why = "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["no word"])[-1]
            except subprocess.TimeoutExpired:
                why = f"it was not done within {LIMIT} s"
            if why:
                failed.append(name)
                rows.append(vars(note(f"{name} failed: {why}")))
                continue
            done = {"of": of, "rows": json.loads(path.read_text())}
            path.write_text(json.dumps(done))
        rows += done["rows"]
    bandwidth = copy_bandwidth(DEVICE)
    finish(DEVICE)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    title = f"{device}, {str(DTYPE)[6:]}, {versions}, {datetime.date.today()}, copies {bandwidth / 1e9:.0f} GB/s"
    print(f"\n{title}\n\n{HEAD}")
    print("\n".join(line(row, bandwidth) for row in sorted(rows, key=lambda row: not row["seconds"])))
    if not SMALL:
        save("gpu", {"title": title, "bandwidth": bandwidth, "rows": rows})
        if importlib.util.find_spec("matplotlib"):
            write(load())
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 scripts/dev.py gpu", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all by default: {'; '.join(PARTS)}")
    parser.add_argument("--folder", type=Path, default=KEPT / "gpu-parts", help="where what is done is kept")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        with small_form() if SMALL else nullcontext():
            text = json.dumps([vars(row) for row in PARTS[options.part]()])
        print(text) if options.to == "-" else Path(options.to).write_text(text)
        return 0
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}: name some of {'; '.join(PARTS)}.")
    folder = options.folder
    if SMALL and folder == KEPT / "gpu-parts":
        folder = ROOT / ".cache" / "gpu-parts"
    return 1 if run(folder, options.parts or list(PARTS)) else 0


if __name__ == "__main__":
    sys.exit(main())
