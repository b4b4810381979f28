"""The bundled model draws what it is asked for, as well as its record says.

The records are what `python -m vgt evaluate scenes|reconstruction models/vgt-tiny.safetensors … --json` wrote; see
vgt/training/README.md.
"""

import json
from pathlib import Path

import pytest
import torch

import vgt
from vgt.evaluation import reconstruction, scenes
from vgt.sampling import SamplingSettings

MODEL = Path(__file__).parents[2] / "models" / "vgt-tiny.safetensors"
RECORDS = Path(__file__).parents[1] / "fixtures" / "vgt-tiny"


@pytest.fixture(scope="module")
def model():
    return vgt.load(MODEL)


def test_the_recorded_scenes_come_out_again(model):
    """The same prompts are drawn right; another processor's rounding may turn one of them."""
    recorded = json.loads((RECORDS / "scenes.json").read_text(encoding="utf-8"))
    settings = SamplingSettings.from_dict(recorded["settings"])
    result = scenes.score(model, recorded["count"], settings, batch=recorded["settings"]["batch"])
    verdicts = zip(recorded["pictures"], result["pictures"], strict=True)
    assert sum((was["wrong"] is None) != (now["wrong"] is None) for was, now in verdicts) <= 2


def test_the_recorded_reconstruction_comes_out_again(model):
    recorded = json.loads((RECORDS / "reconstruction.json").read_text(encoding="utf-8"))
    result = reconstruction.score(model, reconstruction.scene_images(recorded["count"], 112))
    assert result["psnr"] == pytest.approx(recorded["psnr"], abs=0.05)
    assert result["ssim"] == pytest.approx(recorded["ssim"], abs=0.001)


def test_the_model_is_small_enough_to_ship():
    assert MODEL.stat().st_size <= 24_000_000
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in _tensors() if name != "tokenizer.json")


def _tensors():
    from safetensors import safe_open

    with safe_open(MODEL, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            yield name, file.get_tensor(name)
