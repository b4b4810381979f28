"""The detector is right on true renders, and says what is wrong with others."""

import random

import numpy as np
import pytest
import torch
from scipy import ndimage

from vgt.scenes.detector import Detection, Found, detect, judge, mistake, relations
from vgt.scenes.world import CATEGORIES, Item, Object, Request, Scene, render, sample_scene, to_pixels


def sampled(category, count):
    splits = ("train", "test")
    return [sample_scene(random.Random(f"{category}{i}"), splits[i % 2], category)[0] for i in range(count)]


def truth(scene):
    """What a perfect detector finds."""
    things = [Found(t.shape, t.colour, t.x, t.y, t.size, t.size, t.size**2) for t in scene.objects]
    return Detection(scene.background, tuple(things))


@pytest.mark.parametrize("size, count", [(112, 40), (224, 12)])
def test_the_detector_is_right_in_99_of_100(size, count):
    for category in CATEGORIES:
        pictures = sampled(category, count)
        found = [detect(to_pixels(render(scene, size))) for scene in pictures]
        right = sum(mistake(scene.request, what) is None for scene, what in zip(pictures, found))
        assert right >= 0.99 * count, category
        # Every picture under every other caption: a yes only where the caption happens to hold.
        asked = [scene.request for scene in pictures]
        false = [mistake(request, truth(scene)) is not None for scene in pictures for request in asked]
        refused = [mistake(request, what) is not None for what in found for request in asked]
        wrongly = sum(refused) - sum(a and b for a, b in zip(false, refused))
        assert sum(a and b for a, b in zip(false, refused)) >= 0.99 * sum(false), category
        assert wrongly <= 0.01 * len(refused), category


@pytest.mark.parametrize("blur, noise", [(1.0, 0.0), (0.0, 0.06), (1.5, 0.04)])
def test_the_detector_bears_soft_edges_and_noise(blur, noise):
    rng = np.random.default_rng(0)
    right = 0
    for category in CATEGORIES:
        for scene in sampled(category, 5):
            pixels = ndimage.gaussian_filter(to_pixels(render(scene, 112)).numpy(), (0, blur, blur))
            pixels = torch.from_numpy(pixels + rng.normal(0, noise, pixels.shape))
            right += judge(scene.request, pixels)
    assert right >= 29


def test_what_is_wrong_is_said():
    star, circle = Object("star", "red", 0.35, 0.27, 0.5), Object("circle", "blue", 0.35, 0.73, 0.5)

    def wrong(objects, *items, category="two_object", relation=None, background=None):
        request = Request(category, items, relation, background)
        return mistake(request, detect(to_pixels(render(Scene("white", objects, request), 112))))

    both = Item("star", "red"), Item("circle", "blue")
    assert wrong((star, circle), *both) is None
    assert wrong((star, circle), *both, relation="left of") is None
    assert wrong((star, circle), *both, relation="above") == "the star is not above the circle"
    assert wrong((star,), *both) == "there is 1 star, not 1 circle and 1 star"
    assert wrong((star, circle), both[0]) == "there is 1 circle and 1 star, not 1 star"
    assert wrong((star, circle), both[0], Item("circle", "green")) == "the circle is blue, not green"
    assert wrong((star, circle), *both, background="white") is None
    assert wrong((star, circle), *both, background="navy") == "the background is white, not navy"
    two = Object("heart", "red", 0.35, 0.27, 0.5), Object("heart", "pink", 0.35, 0.73, 0.5)
    assert wrong(two, Item("heart", None, 2), category="counting") == "the objects differ in colour"


def test_nothing_and_nonsense_are_no_pictures_of_anything():
    for pixels in (torch.zeros(3, 112, 112), torch.ones(3, 112, 112), torch.rand(3, 112, 112), -torch.rand(3, 56, 84)):
        for category in CATEGORIES:
            assert not judge(sampled(category, 1)[0].request, pixels)


def test_a_shape_of_two_colours_is_two_things():
    scene = Scene("white", (Object("circle", "red", 0.6, 0.5, 0.5),), Request("colors", (Item("circle", "red"),)))
    pixels = to_pixels(render(scene, 112))
    assert judge(scene.request, pixels)
    pixels[:, :, 56:] = pixels[[2, 1, 0], :, 56:]
    assert not judge(scene.request, pixels)


def test_positions_are_genevals():
    def at(x, y):
        return Found("star", "red", x, y, 0.2, 0.2, 0.03)

    assert relations(at(0.2, 0.5), at(0.8, 0.55)) == {"left of"}
    assert relations(at(0.8, 0.2), at(0.2, 0.8)) == {"right of", "above"}
    assert relations(at(0.5, 0.5), at(0.53, 0.5)) == set()
