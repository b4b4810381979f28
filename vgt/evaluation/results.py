"""Result files into a Markdown table and curves."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

AXES = {
    "tokens_per_step": "tokens a step",
    "steps": "flow steps",
    "cfg": "cfg",
    "training_step": "training step",
}
"""What a curve may be drawn against, and its name."""
DRAWN = ("scenes", "drawings")
"""Kinds of results that prompts were drawn for."""


def read(paths: Sequence[Path]) -> list[dict]:
    """Results from files, and from all .json files of folders. ValueError for a file that is none."""
    files = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    results = []
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not a result: {error}.") from error
        if not isinstance(result, dict) or result.get("kind") not in (*DRAWN, "reconstruction"):
            raise ValueError(f"{file} is not a result of `evaluate scenes` or `evaluate reconstruction`.")
        results.append({"file": file.stem, **result})
    if not results:
        raise ValueError("There are no results in there.")
    return results


def markdown(results: Sequence[dict]) -> str:
    """Tables of the results, a result a row: those on shapes, on drawings, and of reconstruction."""
    parts = []
    for kind in DRAWN:
        drawn = [result for result in results if result["kind"] == kind]
        if not drawn:
            continue
        categories = list(drawn[0]["categories"])
        heads = ["result", "tokens a step", "decoding", "groups", "flow steps", "cfg", "pictures"]
        keys = ("tokens_per_step", "decoding", "grouping", "steps", "cfg")
        rows = [
            [
                _name(result),
                *(result["settings"][key] for key in keys),
                result["count"],
                *(f"{result['categories'][category]['score']:.2f}" for category in categories),
                f"**{result['score']:.3f}**",
            ]
            for result in drawn
        ]
        parts.append(table([*heads, *categories, "overall"], rows))
    reconstructions = [result for result in results if result["kind"] == "reconstruction"]
    if reconstructions:
        rows = [
            [
                _name(result),
                result["count"],
                f"{result['psnr']:.2f}",
                f"{result['ssim']:.4f}",
                "not measured" if result["rfid"] is None else f"{result['rfid']:.2f}",
            ]
            for result in reconstructions
        ]
        parts.append(table(["result", "images", "PSNR (dB)", "SSIM", "rFID"], rows))
    return "\n\n".join(parts) + "\n"


def _name(result: dict) -> str:
    name = result.get("label") or result["file"]
    return f"{name}, step {result['training_step']}" if result.get("training_step") else name


def plot(results: Sequence[dict], axis: str, path: Path) -> None:
    """Draw the overall score against `axis` (see AXES) as a PNG, one curve a decoding, grouping and label.

    Raises ValueError when no result has that axis, or matplotlib is missing.
    """
    if axis not in AXES:
        raise ValueError(f"axis is {axis!r}; it must be one of {', '.join(AXES)}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Curves need matplotlib; pip install -r requirements-train.txt.") from error
    curves = lines(results, axis)
    if not curves:
        raise ValueError(f"None of the results has {AXES[axis]}.")
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for (name, points), marker in zip(curves.items(), "osD^vP*X" * len(curves)):
        axes.plot(*zip(*points), marker=marker, markersize=5, linewidth=1.6, label=name)
    if axis == "tokens_per_step":
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(AXES[axis])
    axes.set_ylabel("score")
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def lines(results: Sequence[dict], axis: str) -> dict[str, list[tuple[float, float]]]:
    """The curves: name → [(axis, score)], sorted. At one token a step a uniform result serves growing groups too."""
    curves = defaultdict(dict)
    varied = {key: len({result["settings"][key] for result in _drawn(results)}) > 1 for key in ("decoding", "grouping")}
    for result in _drawn(results):
        settings = result["settings"]
        x = result.get(axis) if axis == "training_step" else settings[axis]
        if x is None:
            continue
        groupings = [settings["grouping"]]
        if settings["tokens_per_step"] == 1 and varied["grouping"]:
            groupings = ["uniform", "cosine"]
        for grouping in groupings:
            parts = [result.get("label"), varied["decoding"] and settings["decoding"]]
            parts.append(varied["grouping"] and {"uniform": "uniform groups", "cosine": "growing groups"}[grouping])
            curves[", ".join(part for part in parts if part)][x] = result["score"]
    return {name: sorted(points.items()) for name, points in curves.items()}


def _drawn(results: Sequence[dict]) -> list[dict]:
    return [result for result in results if result["kind"] in DRAWN]


def table(heads: Sequence, rows: Sequence[Sequence]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
