"""What VGT AR Sampler tells a person about the values of a run: no errors, but worth knowing."""

from __future__ import annotations

from collections.abc import Sequence

from ..vgt.prompt import PromptTokenizer
from ..vgt.run.control import Region
from ..vgt.sampling import SamplingSettings

HIGHEST_CFG = 8.0
"""That was tried (docs/cfg.md)."""
FEWEST_STEPS = {"euler_maruyama": 15, "euler": 3, "exact": 3}
"""Solver → flow steps below which a third of the pictures or more is wrong (docs/steps.md, docs/solvers.md)."""


def on_prompts(tokenizer: PromptTokenizer, prompts: list[str], negative: str, settings: SamplingSettings) -> list[str]:
    texts = [*prompts, negative] if settings.cfg > 1 else prompts
    unknown = dict.fromkeys(word for text in texts for word in tokenizer.never_seen(text))
    return [f"never seen: {', '.join(unknown)}"] if unknown else []


def on_values(settings: SamplingSettings) -> list[str]:
    said = []
    if settings.cfg > HIGHEST_CFG:
        said.append(f"cfg {settings.cfg:g} is above all that was tried (1 to {HIGHEST_CFG:g})")
    flow = settings.flow
    if flow.steps < FEWEST_STEPS.get(flow.solver, 0):
        said.append(
            f"{flow.steps} steps are few for {flow.solver}: below {FEWEST_STEPS[flow.solver]} many pictures fail"
        )
    return said


def on_steering(regions: Sequence[Region], grid: tuple[int, int], begun_with: str | None, model: str) -> list[str]:
    """grid: height and width in tokens. begun_with: the model that began a stopped latent."""
    said = [f"the region {region.prompt!r} covers no token" for region in regions if not region.weights(*grid).any()]
    if begun_with not in (None, model):
        said.append(f"the latent was begun with {begun_with}; here it is a picture to repaint")
    return said


def on_latent(
    asked: tuple[int, int, int], given: bool, settings: SamplingSettings, batch: int, drawn: int, denoise: float
) -> list[str]:
    """asked: width, height (0: open) and batch_size as typed. given: a latent is connected. drawn: tokens to draw."""
    said = []
    width, height, batch_size = asked
    if given:
        other = [
            f"{name} {typed}"
            for name, typed, own in (("width", width, settings.width), ("height", height, settings.height))
            if typed not in (0, own)
        ]
        if batch_size not in (1, batch):
            other.append(f"batch_size {batch_size}")
        if other:
            said.append(
                f"the latent's {settings.width}x{settings.height}, {batch} at once, holds; not {', '.join(other)}"
            )
    if not drawn:
        left = "the mask and denoise leave no token" if denoise < 1 else "the mask covers no token"
        why = left if denoise else "denoise is 0"
        said.append(f"nothing was drawn: {why}")
    return said
