"""Sweeps a setting: the score of scenes against tokens a step, flow steps or guidance, a result file a value."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..sampling import SamplingSettings
from ..scenes.recogniser import Recogniser
from . import drawn_scenes, scenes
from .drawing import BATCH, weights_of, write_whole

TOKENS_PER_STEP = (1, 2, 4, 8, 16, 32, 64)
"""As far as a picture has so many."""
FLOW_STEPS = (5, 10, 20, 30, 50, 100)
CFG = (1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0)


def tokens_per_step(base: SamplingSettings) -> dict[str, SamplingSettings]:
    """Compare both decodings, with uniform and growing groups. At one token a step the two groupings are the same."""
    return {
        f"tokens-{tokens:02}-{decoding}-{grouping}": replace(
            base, tokens_per_step=tokens, decoding=decoding, grouping=grouping
        )
        for decoding in ("published", "training-consistent")
        for grouping in ("uniform", "cosine")
        for tokens in TOKENS_PER_STEP
        if tokens > 1 or grouping == "uniform"
    }


def flow_steps(base: SamplingSettings) -> dict[str, SamplingSettings]:
    """Compare numbers of flow steps a token."""
    return {f"steps-{steps:03}": replace(base, flow=replace(base.flow, steps=steps)) for steps in FLOW_STEPS}


def cfg(base: SamplingSettings) -> dict[str, SamplingSettings]:
    """Compare guidance scales."""
    return {f"cfg-{scale}": replace(base, cfg=scale) for scale in CFG}


SWEEPS: dict[str, Callable[[SamplingSettings], dict[str, SamplingSettings]]] = {
    "tokens-per-step": tokens_per_step,
    "steps": flow_steps,
    "cfg": cfg,
}


def run(
    model,
    sweep: str,
    folder: Path,
    count: int,
    base: SamplingSettings,
    label: str | None = None,
    batch: int = BATCH,
    recogniser: Recogniser | None = None,
) -> None:
    """Write `folder`/NAME.json for every setting of a sweep; those that are there already are not drawn again.

    recogniser: of drawings, which are then asked for; None asks for shapes. Raises ValueError when one of these is of
    another model, count, setting or world.
    """
    kind = "scenes" if recogniser is None else "drawings"
    weights = weights_of(model)
    tokens = base.height * base.width // model.config.token_pixels**2
    for name, settings in SWEEPS[sweep](base).items():
        if settings.tokens_per_step > tokens:
            continue
        path = folder / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            wanted = kind, weights, count, {**settings.to_dict(), "batch": batch}
            if (found["kind"], found.get("weights"), found["count"], found["settings"]) != wanted:
                raise ValueError(f"{path} is the result of another model, count or setting; choose another folder.")
            print(f"{path}: kept")
            continue
        if recogniser is None:
            result = scenes.score(model, count, settings, batch=batch)
        else:
            result = drawn_scenes.score(model, recogniser.drawings, count, settings, batch=batch, recogniser=recogniser)
        result = {"label": label, "weights": weights, **result}
        write(result, path)
        print(f"{path}: {result['score']:.3f}")


def write(result: dict, path: Path) -> None:
    """Write a result as JSON."""
    text = json.dumps(result, indent=1) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
