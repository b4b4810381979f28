"""Keeps results (results/NAME.json), and shows them as RESULTS.md and plots."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
KEPT = Path(__file__).parent / "results"

HEAD = """\
| case | baseline, s | ours, s | times as fast | of the floor | eager, s | peak memory |
|---|---:|---:|---:|---:|---:|---:|"""
_INTRODUCTION = """\
# Speed

Written by `python -m benchmarks --save NAME`. Baseline: the plain way to run VGT (baseline.py), on the same weights
and noise in the same run, the contenders taking turns; medians. Floor: the bytes that must move, over the device's
measured copy bandwidth. Seconds are those of a run, whatever its batch. Ours: with CUDA graphs on CUDA devices; eager:
without.
"""


def line(row: dict, bandwidth: float) -> str:
    """Write a row of a case as a line of the table, or its note."""
    seconds, floor, memory, weights = (row[name] for name in ("seconds", "floor", "memory", "weights"))
    if not seconds:
        return row["note"]
    ours, baseline, eager = (seconds.get(name) for name in ("ours", "baseline", "eager"))
    cells = (
        row["case"],
        f"{baseline:.4f}" if baseline else "",
        f"{ours:.4f}",
        f"{baseline / ours:.2f}" if baseline else "",
        f"{floor / bandwidth / ours:.2f}" if floor else "",
        f"{eager:.4f}" if eager else "",
        f"{memory / 1e9:.2f} GB, weights {weights / 1e9:.2f}" if memory else "",
    )
    return f"| {' | '.join(cells)} |"


def save(name: str, result: dict) -> None:
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def load() -> dict[str, dict]:
    """Read all that is kept, by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))}


def write(results: dict[str, dict]) -> None:
    """Write RESULTS.md and a plot for each result."""
    parts = [_INTRODUCTION]
    for name, result in results.items():
        timed = [line(row, result["bandwidth"]) for row in result["rows"] if row["seconds"]]
        notes = [row["note"] for row in result["rows"] if row["note"]]
        plot(result, KEPT / f"{name}.png")
        parts.append(f"## {result['title']}\n\n{HEAD}\n" + "\n".join(timed))
        parts.extend(notes)
        parts.append(f"![How many times as fast as the baseline](results/{name}.png)")
    RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def plot(result: dict, path: Path) -> None:
    """Plot as bars how many times as fast as the baseline each case is."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["seconds"].get("baseline")]
    ratios = [row["seconds"]["baseline"] / row["seconds"]["ours"] for row in rows]
    figure = Figure(figsize=(7, 0.9 + 0.32 * len(rows)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([row["case"] for row in rows], ratios, color="#4c72b0")
    axes.bar_label(bars, [f" {ratio:.2f}" for ratio in ratios])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the baseline")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
