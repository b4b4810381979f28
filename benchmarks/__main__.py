"""python -m benchmarks [CASE …] [--device cuda] [--dtype bfloat16] [--json FILE]"""

from __future__ import annotations

import argparse
import datetime
import json
import platform

import torch

from .cases import CASES
from .timing import copy_bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all but `full` by default; on CUDA all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    names = options.cases or [name for name in CASES if name != "full" or device.type == "cuda"]

    bandwidth = copy_bandwidth(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, {dtype}, torch {torch.__version__}, Python {platform.python_version()}, {datetime.date.today()}")
    print(f"copy bandwidth {bandwidth / 1e9:.0f} GB/s\n")
    print("| case | baseline, s | ours, s | ratio | of the floor | peak memory |\n|---|---|---|---|---|---|")
    rows = []
    for name in names:
        for row in CASES[name](device, dtype, options.runs):
            baseline, ours = row.seconds.get("baseline"), row.seconds["ours"]
            print(
                f"| {row.case} | {f'{baseline:.3f}' if baseline else ''} | {ours:.3f} "
                f"| {f'{baseline / ours:.2f}' if baseline else ''} "
                f"| {f'{row.floor / bandwidth / ours:.2f}' if row.floor else ''} "
                f"| {f'{row.memory / 1e9:.2f} GB' if row.memory else ''} |",
                flush=True,
            )
            rows.append(vars(row))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": where, "dtype": str(dtype), "bandwidth": bandwidth, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
