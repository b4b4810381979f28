"""What steering by token gives, on the bundled model: `python -m benchmarks.control [FOLDER]` prints the figures of
docs/control.md and writes its pictures into FOLDER (docs).

Regions: two kinds of thing, each in its half, beside one sentence that says the same. Beginnings: eight of which one is
chosen at some 40 % by a quick look ahead and finished, beside eight whole pictures: how many are right, what they cost.
Prompts: what further ones cost. `--only NAME` does one part: regions, prompts, beginnings (how many are right), costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

import vgt
from vgt.evaluation import scenes
from vgt.evaluation.drawing import picture_seed, to_image
from vgt.sampling import PRESETS
from vgt.scenes.detector import detect, mistake

from .cases import BUNDLED

TRIES = 60
SEED = 5
ORDER = "sequential"
PAIRS = (
    ("red", "circle", "square"),
    ("blue", "heart", "star"),
    ("green", "triangle", "circle"),
    ("orange", "star", "square"),
    ("purple", "cross", "heart"),
)
LEFT = torch.zeros(4, 4)
LEFT[:, :2] = 1
BEGINNINGS, PROMPTS = 8, 60
PUBLISHED = {"cfg_end": 1.0, "flow": vgt.FlowSettings()}
FAST = {"cfg_end": PRESETS["fast"].cfg_end, "flow": PRESETS["fast"].flow}
GROUPED = {**PUBLISHED, "decoding": "training-consistent"}
WAYS = {
    "recommended": ({}, 0.4, {}),
    "published": (PUBLISHED, 0.4, {}),
    "published, finished with the preset fast": (PUBLISHED, 0.4, FAST),
    "published, 2 tokens a step": ({**GROUPED, "tokens_per_step": 2}, 0.375, {}),
    "published, 4 tokens a step": ({**GROUPED, "tokens_per_step": 4}, 0.4, {}),
}
"""How a best of eight may be drawn: settings, the share at which beginnings stop, and what is changed for the rest."""
LOOK = {"tokens_per_step": 9999, "cfg": 1.0, "flow": vgt.FlowSettings(2, solver="euler")}
"""All the rest at once: a look at what a beginning would become."""


def regions(model, folder: Path) -> None:
    """Four things, two kinds: the left ones of one shape, the right ones of the other. Right: just these, in place."""
    rows, sheet = [], []
    for colour, one, other in PAIRS:
        want = sorted([(one, colour, True)] * 2 + [(other, colour, False)] * 2)
        parts = [vgt.Region(f"four {colour} {_many(one)}", LEFT), vgt.Region(f"four {colour} {_many(other)}", 1 - LEFT)]
        sentence = f"two {colour} {_many(one)} to the left of two {colour} {_many(other)}"
        shares = []
        for given in ({}, {"regions": parts}):
            pixels = _draw(model, [sentence] * TRIES, seed=SEED, order=ORDER, **given)
            shares.append(sum(_found(picture) == want for picture in pixels) / TRIES)
            sheet.append(torch.cat(list(pixels[:6]), dim=2))
        rows.append(f"| {sentence} | {shares[0]:.2f} | {shares[1]:.2f} |")
        print(rows[-1], flush=True)
    to_image(torch.cat(sheet[:6], dim=1)).save(folder / "regions.png")


def beginnings(model) -> None:
    """Best of eight whole pictures, and of eight beginnings, by the detector."""
    for name, (how, share, rest) in WAYS.items():
        right = {"one": 0, "eight whole": 0, "eight beginnings": 0}
        for number, (request, prompt) in enumerate(scenes.prompts(PROMPTS)):
            settings = {**how, "seed": picture_seed(SEED, number)}

            def judged(latent, request=request):
                return [mistake(request, detect(picture)) is None for picture in _pixels(model, latent)]

            verdicts = judged(model.generate([prompt] * BEGINNINGS, **settings))
            right["one"] += verdicts[0]
            right["eight whole"] += any(verdicts)
            beginning = vgt.Beginning()
            part = model.generate([prompt] * BEGINNINGS, stop_at=share, beginning=beginning, **settings)
            seen = judged(model.generate([prompt] * BEGINNINGS, latent=part, beginning=beginning, **settings | LOOK))
            chosen = seen.index(True) if True in seen else 0
            begun = {"latent": part[chosen : chosen + 1], "beginning": beginning, "batch_index": [chosen]}
            done = model.generate(prompt, **begun, **settings | rest)
            right["eight beginnings"] += judged(done)[0]
        print(f"{name}: " + ", ".join(f"{what} {count / PROMPTS:.2f}" for what, count in right.items()), flush=True)


def costs(model, rounds: int = 7) -> None:
    """Time of the sampler, without decoding and judging, as shares of that of eight whole pictures in one batch; in the
    last column, of eight one after the other.
    """
    for name, (settings, share, rest) in WAYS.items():
        seconds = _seconds(model, {"seed": SEED, **settings}, share, rest, rounds)
        whole, one = seconds.pop("eight whole"), seconds["one whole"]
        shares = {part: statistics.median(a / b for a, b in zip(times, whole)) for part, times in seconds.items()}
        total = sum(part for what, part in shares.items() if what != "one whole")
        columns = " | ".join(f"{part:.2f}" for part in shares.values())
        in_turn = total * statistics.median(a / (BEGINNINGS * b) for a, b in zip(whole, one))
        print(f"| {name} | {statistics.median(whole):.2f} s | {columns} | {total:.2f} | {in_turn:.2f} |", flush=True)


def _seconds(model, settings: dict, share: float, rest: dict, rounds: int) -> dict[str, list[float]]:
    """Times of the parts in turn, after a first round that does not count."""
    texts, one = ["four green hearts"] * BEGINNINGS, "four green hearts"
    beginning = vgt.Beginning()
    part = model.generate(texts, stop_at=share, beginning=beginning, **settings)
    begun = {"beginning": beginning, **settings}
    parts = {
        "eight whole": lambda: model.generate(texts, **settings),
        "one whole": lambda: model.generate(one, **settings),
        "eight beginnings": lambda: model.generate(texts, stop_at=share, beginning=vgt.Beginning(), **settings),
        "look ahead": lambda: model.generate(texts, latent=part, **begun | LOOK),
        "finish one": lambda: model.generate(one, latent=part[5:6], batch_index=[5], **begun | rest),
    }
    seconds = {name: [] for name in parts}
    for number in range(1 + rounds):
        for name, work in parts.items():
            began = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def prompts(model, rounds: int = 9) -> None:
    """Time of a picture with one, two and three prompts, in turn, without seams."""
    thirds = [torch.zeros(4, 4) for _ in range(2)]
    thirds[0][0], thirds[1][3] = 1, 1
    made = [vgt.Region(text, mask) for text, mask in zip(("four red circles", "four blue stars"), thirds)]
    seconds = {count: [] for count in (1, 2, 3)}
    for _ in range(rounds + 1):
        for count in seconds:
            began = time.perf_counter()
            model.generate("four green hearts", regions=made[: count - 1])
            seconds[count].append(time.perf_counter() - began)
    for count, times in seconds.items():
        ratios = [own / one for own, one in zip(times[1:], seconds[1][1:])]
        print(f"{count} prompts: {statistics.median(ratios):.2f} times one")


def _many(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _draw(model, texts, **settings) -> torch.Tensor:
    return _pixels(model, model.generate(texts, **settings))


def _pixels(model, latent) -> torch.Tensor:
    return ((model.decode(latent) + 1) / 2).clamp(0, 1)


def _found(picture) -> list:
    return sorted((str(thing.shape), str(thing.colour), thing.x < 0.5) for thing in detect(picture).objects)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--only", choices=["regions", "prompts", "beginnings", "costs"])
    arguments = parser.parse_args()
    model = vgt.load(BUNDLED)
    work = {
        "regions": lambda: regions(model, arguments.folder),
        "prompts": lambda: prompts(model),
        "beginnings": lambda: beginnings(model),
        "costs": lambda: costs(model),
    }
    for name, part in work.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main()
