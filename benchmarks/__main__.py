"""python -m benchmarks [CASE …] [--device cuda] [--dtype bfloat16] [--save NAME]"""

from __future__ import annotations

import argparse
import datetime
import platform

import torch

from .cases import CASES
from .report import HEAD, RESULTS, line, load, save, write
from .timing import copy_bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all but `full` by default; on CUDA all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--runs", type=int, default=1, help="rounds at least; short work is timed more often")
    parser.add_argument(
        "--save", metavar="NAME", help=f"keep the figures and rewrite {RESULTS.name} from all that are kept"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    names = options.cases or [name for name in CASES if name != "full" or device.type == "cuda"]

    bandwidth = copy_bandwidth(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    title = f"{name}, {str(dtype)[6:]}, {versions}, {datetime.date.today()}, copies {bandwidth / 1e9:.0f} GB/s"
    print(f"{title}\n\n{HEAD}")
    rows = []
    for name in names:
        for row in CASES[name](device, dtype, options.runs):
            print(line(vars(row), bandwidth), flush=True)
            rows.append(vars(row))
    if options.save:
        save(options.save, {"title": title, "bandwidth": bandwidth, "rows": rows})
        write(load())


if __name__ == "__main__":
    main()
