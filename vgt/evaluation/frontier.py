"""What a picture costs and what it is worth: ways to use the flow head, each with its score, its time, and what the
scenes score cannot see: how much the pictures of one prompt differ, and how near the flow's true end they come.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..run.flow import FlowSettings
from ..run.generation import draw_noise
from ..sampling import PRESETS, SamplingSettings
from ..scenes.detector import detect
from .drawing import BATCH, picture_seed, weights_of, write_whole
from .results import table
from .scenes import prompts, score

KIND = "frontier"
OPEN = ("single_object", "counting", "colors", "two_object")
"""Categories whose captions leave open where things are."""
DIFFERENT = 16
"""Pictures of a prompt, whose differences are taken."""
TIMED = 3
"""Pictures drawn one by one to take their time."""
FINE = 100
"""Steps of the flow that counts as its true end."""


def _flows(solver: str, *steps: int) -> tuple[SamplingSettings, ...]:
    return tuple(SamplingSettings(cfg_end=1.0, flow=FlowSettings(count, solver=solver)) for count in steps)


WAYS: dict[str, tuple[SamplingSettings, ...]] = {
    "published": _flows("euler_maruyama", 30, 20, 10),
    "exact": _flows("exact", 10, 6),
    "euler": _flows("euler", 6, 10, 4),
    "annealed": (PRESETS["fast"], PRESETS["balanced"]),
    "distilled": _flows("distilled", 2, 1, 4),
}
"""Ways to use the flow head. The first of each is drawn with several tokens a step and in both decodings too."""


def settings(base: SamplingSettings, distilled: bool) -> dict[str, SamplingSettings]:
    """All that is drawn, by name. distilled: whether the model has a distilled head."""
    base = replace(base, cfg_schedule="linear")
    made = {}
    for way, ones in WAYS.items():
        if way == "distilled" and not distilled:
            continue
        for one in ones:
            flow = one.flow
            steps = f"{flow.steps}" if flow.final_steps is None else f"{flow.steps}-{flow.final_steps}"
            for decoding in ("published", "training-consistent"):
                for tokens in (1, 2, 4):
                    if one is ones[0] or (decoding, tokens) == ("published", 1):
                        name = f"{way}-{steps}-{decoding}-{tokens}"
                        made[name] = replace(one.over(base), decoding=decoding, tokens_per_step=tokens)
    return made


def run(model, folder: Path, count: int, base: SamplingSettings, batch: int = BATCH) -> list[dict]:
    """Write `folder`/NAME.json for each of `settings`, then frontier.md and frontier.png; what is there is kept.

    Returns the results. Raises ValueError when one of these is of another model, count or setting.
    """
    weights = weights_of(model)
    results = []
    for name, one in settings(base, model.generator.distilled_head is not None).items():
        path = folder / f"{name}.json"
        wanted = {"kind": KIND, "weights": weights, "count": count, "settings": {**one.to_dict(), "batch": batch}}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if any(found.get(key) != value for key, value in wanted.items()):
                raise ValueError(f"{path} is the result of another model, count or setting; choose another folder.")
        else:
            found = {**wanted, "way": name.split("-")[0], **measure(model, count, one, batch)}
            text = json.dumps(found, indent=1) + "\n"
            write_whole(path, lambda unfinished, text=text: unfinished.write_text(text, encoding="utf-8"))
        results.append(found)
        print(f"{path}: score {found['score']:.3f}, {found['evaluations']:.1f} evaluations a token")
    (folder / "frontier.md").write_text(markdown(results), encoding="utf-8")
    plot(results, folder / "frontier.png")
    return results


def measure(model, count: int, one: SamplingSettings, batch: int) -> dict:
    """Score, evaluations a token, seconds a picture, diversity, layouts, and for a flow without noise its closeness."""
    result = score(model, count, one, batch=batch)
    pixels = [_different(model, caption, one) for caption in _open_captions(4)]
    return {
        "score": result["score"],
        "categories": {name: category["score"] for name, category in result["categories"].items()},
        "evaluations": evaluations(one, model.generator.token_pixels),
        "seconds": seconds(model, one),
        "diversity": statistics.mean(map(spread, pixels)),
        "layouts": statistics.mean(len({layout(picture) for picture in pictures}) for pictures in pixels),
        "closeness": closeness(model, one) if one.flow.solver in ("euler", "distilled") else None,
    }


def evaluations(one: SamplingSettings, token_pixels: int) -> float:
    """Flow steps a token, in the mean over a picture."""
    tokens = one.height * one.width // token_pixels**2
    groups = max(1, tokens // one.tokens_per_step)
    return statistics.mean(one.flow.steps_at(index / groups) for index in range(groups))


def seconds(model, one: SamplingSettings) -> float:
    """Of one picture drawn by itself, the fastest of some.

    On a CPU it is the processor's time, of all threads: other work beside it does not count.
    """
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    taken = []
    for number in range(TIMED):
        start = clock()
        model.generate(prompts(6)[number][1], **vars(replace(one, seed=number))).cpu()
        taken.append(clock() - start)
    return min(taken)


def spread(pixels: Tensor) -> float:
    """Mean distance of two pictures of [N, 3, H, W]: root mean square over their values."""
    flat = pixels.flatten(1)
    distances = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    return float(distances.sum() / (len(flat) * (len(flat) - 1)))


def layout(pixels: Tensor) -> tuple:
    """Where things are in a picture [3, H, W], and of what shape: the cells of a grid of 3 by 3."""
    return tuple(sorted((thing.shape or "", int(3 * thing.x), int(3 * thing.y)) for thing in detect(pixels).objects))


def closeness(model, one: SamplingSettings) -> float:
    """Root mean square distance of latents (each of length 1 in that measure) to those of a fine flow from the same
    noise, token by token as each is drawn: 0 is the same, and what one token changes goes on in the next."""
    captions = [caption for _, caption in prompts(DIFFERENT)]
    tokens = one.height * one.width // model.generator.token_pixels**2
    noise = torch.cat([draw_noise(picture_seed(one.seed, number), [0], tokens, 1) for number in range(len(captions))])
    noise = torch.cat(
        (noise, torch.zeros(len(captions), tokens, max(FINE, one.flow.steps) - 1, noise.shape[-1])), dim=2
    )
    fine = replace(one, cfg_end=1.0, flow=FlowSettings(FINE, 1 / FINE, "euler"))
    latents = [model.generate(captions, noise=noise[:, :, : way.flow.steps], **vars(way)).cpu() for way in (one, fine)]
    return float((latents[0] - latents[1]).square().mean().sqrt())


def _open_captions(count: int) -> list[str]:
    """The first captions of the score that leave a layout open, of different categories."""
    found: dict[str, str] = {}
    for request, caption in prompts(60):
        if request.category in OPEN:
            found.setdefault(request.category, caption)
    return list(found.values())[:count]


def _different(model, caption: str, one: SamplingSettings) -> Tensor:
    """Pictures of one prompt [16, 3, H, W] in [0, 1]: other noise each, the same order of tokens."""
    latent = model.generate([caption] * DIFFERENT, **vars(one))
    return ((model.decode(latent) + 1) / 2).clamp(0, 1).cpu()


def markdown(results: list[dict]) -> str:
    """The results as a table, the best first among those of a way."""
    heads = ["way", "solver", "steps", "guidance", "tokens a step", "decoding", "evaluations a token", "score"]
    heads += ["seconds", "diversity", "layouts of 16", "distance to 100 steps"]
    rows = []
    for result in results:
        own = result["settings"]
        final = own.get("final_steps")
        rows.append(
            [
                result["way"],
                own["solver"],
                own["steps"] if final is None else f"{own['steps']} to {final}",
                "all" if own["cfg_end"] == 1 else f"first {own['cfg_end']:.0%}",
                own["tokens_per_step"],
                own["decoding"],
                f"{result['evaluations']:.1f}",
                f"**{result['score']:.3f}**",
                f"{result['seconds']:.3f}",
                f"{result['diversity']:.3f}",
                f"{result['layouts']:.1f}",
                "" if result["closeness"] is None else f"{result['closeness']:.3f}",
            ]
        )
    return table(heads, rows) + "\n"


def plot(results: list[dict], path: Path) -> None:
    """Score against seconds and against evaluations a token, a curve a way; ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Curves need matplotlib; pip install -r requirements-train.txt.") from error
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, key, name in zip(both, ("evaluations", "seconds"), ("evaluations a token", "seconds a picture")):
        points = defaultdict(list)
        for result in results:
            own = result["settings"]
            usual = (own["decoding"], own["tokens_per_step"]) == ("published", 1)
            points[result["way"], usual].append((result[key], result["score"]))
        colours = {way: f"C{index}" for index, way in enumerate(WAYS)}
        for (way, usual), found in points.items():
            if usual:
                axes.plot(*zip(*sorted(found)), marker="o", markersize=5, color=colours[way], label=way)
            else:  # several tokens a step, or the other decoding
                axes.scatter(*zip(*found), marker="x", s=18, color=colours[way], alpha=0.6)
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel("scenes score")
    both[0].set_ylim(0, 1.02)
    both[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
