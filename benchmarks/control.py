"""What steering by token gives, on the bundled model: `python -m benchmarks.control [FOLDER]` prints the figures of
docs/control.md and writes its pictures into FOLDER (docs).

Regions: two kinds of thing, each in its half, beside one sentence that says the same. Beginnings: eight of which one is
chosen at 40 % by a quick look ahead and finished, beside eight whole pictures. Prompts: what further ones cost.
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
from vgt.scenes.detector import detect, mistake

MODEL = Path(__file__).parents[1] / "models" / "vgt-tiny.safetensors"
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
BEGINNINGS, SHARE, PROMPTS = 8, 0.4, 60


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
    """Best of eight whole pictures, and of eight beginnings: score and time, in turn."""
    asked = scenes.prompts(PROMPTS)
    right = {"one": 0, "eight whole": 0, "eight beginnings": 0}
    seconds = {name: [] for name in right}
    for number, (request, prompt) in enumerate(asked):
        settings = {"seed": picture_seed(SEED, number)}

        def judged(latent, request=request):
            return [mistake(request, detect(picture)) is None for picture in _pixels(model, latent)]

        began = time.perf_counter()
        whole = model.generate([prompt] * BEGINNINGS, **settings)
        verdicts = judged(whole)
        seconds["eight whole"].append(time.perf_counter() - began)
        right["one"] += verdicts[0]
        right["eight whole"] += any(verdicts)
        began = time.perf_counter()
        part = model.generate([prompt] * BEGINNINGS, stop_at=SHARE, **settings)
        guess = model.generate(
            [prompt] * BEGINNINGS, latent=part, tokens_per_step=99, flow=vgt.FlowSettings(2, solver="euler"), **settings
        )
        seen = judged(guess)
        chosen = seen.index(True) if True in seen else 0
        done = model.generate(prompt, latent=part[chosen : chosen + 1], batch_index=[chosen], **settings)
        right["eight beginnings"] += judged(done)[0]
        seconds["eight beginnings"].append(time.perf_counter() - began)
    share = statistics.median(a / b for a, b in zip(seconds["eight beginnings"], seconds["eight whole"]))
    for name, count in right.items():
        print(f"{name}: {count / PROMPTS:.2f}")
    print(f"eight beginnings and one finished take {share:.2f} of the time of eight whole pictures")


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
    folder = parser.parse_args().folder
    model = vgt.load(MODEL)
    regions(model, folder)
    prompts(model)
    beginnings(model)


if __name__ == "__main__":
    main()
