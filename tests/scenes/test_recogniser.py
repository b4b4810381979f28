"""The recogniser, on real drawings: right on true renders, also blurred and noisy ones, and wrong on others."""

import random

import pytest
import torch
from torch.nn import functional as F

import drawn
from vgt.scenes.drawings import CATEGORIES, Drawings, render, sample
from vgt.scenes.recogniser import Recogniser, look
from vgt.scenes.world import Item, Request, to_pixels


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return Drawings(drawn.real_folder(tmp_path_factory.mktemp("drawings")))


@pytest.fixture(scope="module")
def recogniser(drawings):
    return Recogniser(drawings)


@pytest.fixture(scope="module")
def scenes(drawings):
    """(scene, picture of 224x224) of every category."""
    made = [sample(drawings, random.Random(f"{c} {i}"), "train", c)[0] for c in CATEGORIES for i in range(24)]
    return [(scene, to_pixels(render(drawings, scene, 224))) for scene in made]


def worsened(pixels):
    """As a tokenizer may give it back: softer, a little noisy, somewhat duller."""
    small = F.interpolate(pixels[None], scale_factor=0.5, mode="area")
    soft = F.interpolate(small, size=pixels.shape[1:], mode="bilinear")[0]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return 0.05 + 0.9 * soft + 0.01 * noise


def rebuilt(pictures, psnr):
    """As a linear tokenizer of 28x28 pixels a token gives them back, with the fewest principal components that keep
    `psnr` dB: the squares show, and edges ring."""
    squares = F.unfold(pictures, 28, stride=28).transpose(1, 2)
    mean = squares.mean((0, 1))
    torch.manual_seed(0)
    _, _, basis = torch.pca_lowrank((squares - mean).flatten(0, 1), 256, center=False, niter=2)
    for count in range(16, 257, 16):
        kept = (squares - mean) @ basis[:, :count] @ basis[:, :count].T + mean
        found = F.fold(kept.transpose(1, 2), 224, 28, stride=28).clamp(0, 1)
        reached = -10 * (found - pictures).square().flatten(1).mean(1).log10().mean()
        if reached >= psnr:
            return found
    raise AssertionError(f"256 components keep {reached:.1f} dB")


@pytest.mark.parametrize("how", ["true", "worsened", "rebuilt"])
def test_true_renders_are_right(scenes, recogniser, how):
    pictures = torch.stack([pixels for _, pixels in scenes])
    if how == "worsened":
        pictures = torch.stack([worsened(pixels) for pixels in pictures])
    if how == "rebuilt":
        pictures = rebuilt(pictures, 29)
    wrong = []
    for (scene, _), pixels in zip(scenes, pictures):
        mistake = recogniser.mistake(scene.request, look(pixels))
        wrong += [(scene.request, mistake)] if mistake else []
    assert len(wrong) <= 0.02 * len(scenes), wrong


def test_pictures_of_something_else_are_wrong(scenes, recogniser):
    right = []
    for (scene, _), (_, other) in zip(scenes, scenes[1:] + scenes[:1]):
        if recogniser.mistake(scene.request, look(other)) is None:
            right.append(scene.request)
    assert len(right) <= 0.05 * len(scenes), right


def test_what_is_wrong_is_said(drawings, recogniser, scenes):
    scene, pixels = next((s, p) for s, p in scenes if s.request.category == "position" and s.background == "white")
    sight = look(pixels)
    first, second = (item.shape for item in scene.request.items)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    turned = Request("position", scene.request.items, opposite[scene.request.relation])
    assert recogniser.mistake(turned, sight) == f"the {first} is not {turned.relation} the {second}"
    assert recogniser.mistake(Request("counting", (Item(first, None, 3),)), sight) == "there are 2 things, not 3"
    assert "background" in recogniser.mistake(Request("two", scene.request.items, None, "red"), sight)
    assert recogniser.mistake(scene.request, look(torch.full((3, 224, 224), 0.99))) in (
        "there is nothing",
        f"the background is white, not {scene.request.background}",
    )
    third = next(one.name for one in drawings.countable["flat"] if one.name not in (first, second))
    assert "it looks like" in recogniser.mistake(Request("two", (Item(first), Item(third))), sight)


def test_the_five_nearest_count_where_one_asks_for_them(drawings, recogniser, scenes):
    scene, pixels = next((s, p) for s, p in scenes if s.request.category == "drawing")
    sight = look(pixels)
    names = recogniser.ranked(sight.everything, sight.background, alone=True)
    assert names[0] == scene.request.items[0].shape and sorted(names) == sorted({one.name for one in drawings.all})
    third = Request("drawing", (Item(names[2]),))
    assert recogniser.mistake(third, sight) and recogniser.mistake(third, sight, best=5) is None
