"""Forty prompts as people type them, two seeds each, are drawn right by the bundled model: see docs/prompts.md."""

import torch

import drawn
import vgt
from typed_prompts import TYPED
from vgt.run.generation import draw_noise
from vgt.scenes.drawings import Drawings
from vgt.scenes.recogniser import Recogniser, look

SEEDS = range(2)


def test_what_people_type_is_drawn(bundled_model, tmp_path):
    model = vgt.load(bundled_model)
    recogniser = Recogniser(Drawings(drawn.real_folder(tmp_path)))
    settings = model.recommended.filled()
    tokens = settings.height * settings.width // model.config.token_pixels**2
    noise = torch.cat([draw_noise(seed, [0], tokens, settings.flow.steps) for seed in SEEDS])
    right = {}
    for prompt, request in TYPED:
        pixels = (model.decode(model.generate([prompt] * len(SEEDS), noise=noise)) + 1) / 2
        right[prompt] = sum(recogniser.mistake(request, look(picture)) is None for picture in pixels)
    failed = {prompt: count for prompt, count in right.items() if count < len(SEEDS)}
    share = sum(right.values()) / len(TYPED) / len(SEEDS)
    print(f"{share:.3f} right; not all right: {failed}")
    assert len(TYPED) == 40
    assert share >= 0.85
