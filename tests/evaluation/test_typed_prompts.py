"""Forty prompts as people type them, four seeds each, are drawn right by the bundled model: see docs/prompts.md."""

import pytest
import torch

import vgt
from typed_prompts import AFTERWARDS, PLACES, TYPED
from vgt.run.generation import draw_noise
from vgt.scenes.detector import judge

SEEDS = range(4)


@pytest.mark.parametrize("asked", [TYPED, AFTERWARDS, PLACES], ids=["forty", "afterwards", "places"])
def test_what_people_type_is_drawn(bundled_model, asked):
    model = vgt.load(bundled_model)
    steps = model.recommended.filled().flow.steps
    noise = torch.cat([draw_noise(seed, [0], 16, steps) for seed in SEEDS])
    right = {}
    for prompt, request in asked:
        pixels = (model.decode(model.generate([prompt] * len(SEEDS), noise=noise)) + 1) / 2
        right[prompt] = sum(judge(request, picture) for picture in pixels)
    failed = {prompt: count for prompt, count in right.items() if count < len(SEEDS)}
    share = sum(right.values()) / len(asked) / len(SEEDS)
    print(f"{share:.3f} right; not all right: {failed}")
    assert len(TYPED) == 40
    assert share >= 0.85
