"""What `vgt.load` returns, as one uses it from Python."""

import numpy as np
import pytest
import torch

import vgt
from recorded import FAMILIES, FIXTURES
from vgt.model import to_image

SETTINGS = {"height": 56, "width": 84, "seed": 3, "flow": vgt.FlowSettings(steps=2)}


@pytest.mark.parametrize("family", FAMILIES)
def test_draw_gives_the_pictures_of_generate_and_decode(family):
    model = vgt.load(FIXTURES / family)
    images = model.draw(["a cat", "a dog"], "a bird", **SETTINGS)
    pixels = model.decode(model.generate(["a cat", "a dog"], "a bird", **SETTINGS))
    assert [image.size for image in images] == [(84, 56)] * 2
    for image, expected in zip(images, pixels):
        assert np.abs(np.asarray(image) / 127.5 - 1 - expected.clamp(-1, 1).movedim(0, -1).numpy()).max() < 0.005
    assert model.draw("a cat", "a bird", **SETTINGS)[0].tobytes() != images[1].tobytes()


def test_what_lies_outside_the_range_is_clamped():
    image = to_image(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).expand(3, 1, 5))
    assert list(np.asarray(image)[0, :, 0]) == [0, 0, 128, 255, 255]


def test_a_latent_is_normalised_by_token():
    model = vgt.load(FIXTURES / FAMILIES[0])
    latent = model.encode(torch.rand(1, 3, 56, 84, generator=torch.Generator().manual_seed(0)))
    assert latent.mean(1).abs().max() < 1e-5 and (latent.var(1, correction=0) - 1).abs().max() < 1e-3
    assert latent.abs().max() <= 31**0.5
