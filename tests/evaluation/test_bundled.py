"""The bundled model draws what it is asked for, as well as its records say.

The records are what `python -m vgt evaluate scenes|reconstruction MODEL … --json` wrote; see vgt/training/README.md.
Their drawings are those of tests/fixtures/drawings.
"""

import json

import pytest
import torch

import drawn
import vgt
from bundled import PATH
from recorded import FIXTURES
from vgt.evaluation import drawn_scenes, reconstruction, scenes
from vgt.sampling import SamplingSettings
from vgt.scenes.drawings import Drawings

RECORDS = FIXTURES / "vgt-drawings"
LARGEST = 48_000_000
"""Bytes of the file: everyone who installs the pack downloads it."""


@pytest.fixture(scope="module")
def model():
    return vgt.load(PATH)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return Drawings(drawn.real_folder(tmp_path_factory.mktemp("drawings")))


def record(name):
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("world", ["shapes", "drawings"])
def test_the_recorded_scenes_come_out_again(model, drawings, world):
    """The same prompts are drawn right; another processor's rounding may turn one or two of them."""
    recorded = record("scenes")
    recorded = recorded["drawings"] if world == "drawings" else recorded
    settings = SamplingSettings.from_dict(recorded["settings"])
    count, how = recorded["count"], {"batch": recorded["settings"]["batch"]}
    if world == "drawings":
        result = drawn_scenes.score(model, drawings, count, settings, **how)
    else:
        result = scenes.score(model, count, settings, **how)
    verdicts = zip(recorded["pictures"], result["pictures"], strict=True)
    assert sum((was["wrong"] is None) != (now["wrong"] is None) for was, now in verdicts) <= 2


@pytest.mark.parametrize("world", ["shapes", "drawings"])
def test_the_recorded_reconstruction_comes_out_again(model, drawings, world):
    recorded = record(f"reconstruction-{world}")
    count, side = recorded["count"], model.recommended.width
    if world == "drawings":
        images = drawn_scenes.drawing_images(drawings, count, side)
    else:
        images = reconstruction.scene_images(count, side)
    result = reconstruction.score(model, images)
    assert result["psnr"] == pytest.approx(recorded["psnr"], abs=0.05)
    assert result["ssim"] == pytest.approx(recorded["ssim"], abs=0.001)


def test_the_model_is_small_enough_to_ship():
    assert PATH.stat().st_size <= LARGEST
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in _tensors() if name != "tokenizer.json")


def _tensors():
    from safetensors import safe_open

    with safe_open(PATH, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            yield name, file.get_tensor(name)
