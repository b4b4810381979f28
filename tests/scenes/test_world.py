import json
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from vgt.scenes import world as scenes
from vgt.scenes.captions import describe
from vgt.scenes.world import CATEGORIES, Item, Request, ScenesDataset, export, held_out, render, sample_scene
from vgt.training.caption_truth import judge


@pytest.fixture(scope="module")
def train():
    return [sample_scene(random.Random(index), "train") for index in range(6000)]


def test_every_word_of_the_vocabulary_occurs_in_training(train):
    assert {category for _, category, _ in train} == set(CATEGORIES)
    objects = [thing for scene, _, _ in train for thing in scene.objects]
    pairs = {(thing.colour, thing.shape) for thing in objects}
    assert len(pairs) == len(scenes.COLOURS) * len(scenes.SHAPES)
    assert {scene.background for scene, _, _ in train} == set(scenes.BACKGROUNDS)
    counts = {(len(s.objects), s.objects[0].shape) for s, category, _ in train if category == "counting"}
    assert len(counts) == 4 * len(scenes.SHAPES)
    assert {scene.request.relation for scene, _, _ in train} == {None, *scenes.RELATIONS}


def test_a_settled_scene_is_about_the_same_whenever_its_caption_is():
    seen = {}
    for index in range(3000):
        scene, _, _ = sample_scene(random.Random(index), "train", free=False)
        assert not held_out(scene)
        seen.setdefault(scene.request, []).append(scene)
    repeated = [some for some in seen.values() if len(some) > 1]
    assert len(repeated) > 300
    for first, *others in repeated:
        for one in others:
            assert one.background == first.background
            for a, b in zip(one.objects, first.objects, strict=True):
                assert (a.shape, a.colour) == (b.shape, b.colour)
                assert max(abs(a.x - b.x), abs(a.y - b.y), abs(a.size - b.size)) < 0.05


def test_the_usual_colours_are_shown_on_every_background():
    assert scenes.USUAL.keys() == set(scenes.SHAPES)
    assert not {(colour, shape) for shape, colour in scenes.USUAL.items()} & scenes.HELD_OUT_COLOURS


def test_training_never_shows_nor_tells_a_held_out_combination(train):
    assert not any(held_out(scene) for scene, _, _ in train)
    others = {shape: [other for other in scenes.SHAPES if other != shape] for shape in scenes.SHAPES}
    for shape, background in scenes.HELD_OUT_BACKGROUNDS:
        both = [text for _, _, text in train if shape in text and background in text]
        assert both and all(any(other in text for other in others[shape]) for text in both)
    unseen = [(scene, category, text) for scene, category, text in train if scene.background in scenes.UNSEEN_ON]
    assert len(unseen) > 500
    texts = [text for _, _, text in unseen]
    for colour, shape in scenes.HELD_OUT_COLOURS:
        assert not any(re.search(rf"\b{colour} {shape}(s|es)?\b", text) for text in texts)
    for one, other in scenes.HELD_OUT_PAIRS:
        assert not any(one in text and other in text for text in texts)
    numbers = {2: "(two|2)", 3: "(three|3)", 4: "(four|4)"}
    for count, shape in scenes.HELD_OUT_COUNTS:
        assert not any(re.search(rf"\b{numbers[count]} (\w+ )?{shape}(s|es)", text) for text in texts)
    opposite = {"left of": "right of", "above": "below"}
    for one, relation, other in scenes.HELD_OUT_POSITIONS:
        told = {
            (s.request.items[0].shape, s.request.relation, s.request.items[1].shape)
            for s, c, _ in unseen
            if c == "position"
        }
        assert (one, relation, other) not in told and (other, opposite[relation], one) not in told


def test_a_test_scene_holds_just_the_combination_its_category_is_about():
    seen = {category: set() for category in CATEGORIES}
    for index in range(1200):
        scene, category, text = sample_scene(random.Random(index), "test")
        assert held_out(scene) == {scenes.RULE[category]}
        assert scene.background == "white" or scene.background in text
        seen[category].add(text)
    assert all(len(texts) > 20 for texts in seen.values())
    for one, other in scenes.HELD_OUT_PAIRS:
        assert any(one in text and other in text for text in seen["two_object"])
    for one, relation, other in scenes.HELD_OUT_POSITIONS:
        assert any(one in text and other in text for text in seen["position"]), (one, relation, other)


def test_captions_name_things_in_reading_order_unless_they_say_where(train):
    open_ = [s.objects for s, _, _ in train if len(s.request.items) == 2 and s.request.relation is None]
    assert all(max(other.x - one.x, other.y - one.y) > 0.3 for one, other in open_)
    beside = sum(other.x - one.x > 0.3 for one, other in open_)
    assert 0.4 < beside / len(open_) < 0.6


def test_objects_lie_apart_and_within_the_picture(train):
    for scene, _, _ in train[:2000]:
        boxes = [(t.x - t.size / 2, t.y - t.size / 2, t.x + t.size / 2, t.y + t.size / 2) for t in scene.objects]
        assert all(left > 0.02 and top > 0.02 and right < 0.98 and low < 0.98 for left, top, right, low in boxes)
        for index, a in enumerate(boxes):
            for b in boxes[index + 1 :]:
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]


def test_outlines_fit_their_square():
    for shape in scenes.SHAPES:
        points = scenes.outline(shape)
        assert abs(points).max() <= 0.52
        assert np.allclose(points.max(0), -points.min(0))
    with pytest.raises(ValueError, match="circle"):
        scenes.outline("hexagon")


def test_captions_name_what_is_asked_for():
    rng = random.Random(0)
    texts = {describe(Request("colors", (Item("cross", "orange"),)), rng) for _ in range(50)}
    assert "a photo of an orange cross" in texts and "an orange cross" in texts
    texts = {describe(Request("counting", (Item("cross", None, 3),), background="navy"), rng) for _ in range(500)}
    assert "three crosses on a navy background" in texts and "3 crosses on navy" in texts
    both = (Item("star"), Item("heart", "red"))
    texts = {describe(Request("position", both, "left of"), rng) for _ in range(100)}
    assert "a star left of a red heart" in texts and "a photo of a star to the left of a red heart" in texts


def test_a_seed_is_a_data_set():
    dataset = ScenesDataset(56, seed=3, length=8)
    pixels, text = dataset[5]
    assert pixels.shape == (3, 56, 56) and pixels.dtype == torch.float32 and 0 <= pixels.min() <= pixels.max() <= 1
    again, same = ScenesDataset(56, seed=3, length=100)[5]
    assert torch.equal(pixels, again) and text == same
    assert len(dataset) == 8 and len(list(dataset)) == 8
    assert [ScenesDataset(56, seed=4)[i][1] for i in range(8)] != [dataset[i][1] for i in range(8)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    assert next(iter(loader))[0].shape == (4, 3, 56, 56)


def test_edges_are_soft_and_colours_exact():
    scene = scenes.Scene("navy", (scenes.Object("circle", "yellow", 0.6, 0.5, 0.5),), Request("colors", ()))
    image = render(scene, 112)
    assert image.shape == (112, 112, 3) and image.dtype == np.uint8
    assert tuple(image[0, 0]) == scenes.BACKGROUNDS["navy"] and tuple(image[56, 56]) == scenes.COLOURS["yellow"]
    colours = {tuple(colour) for colour in image.reshape(-1, 3)}
    assert 5 < len(colours) < 30
    # In the middle, to a fraction of a pixel.
    assert abs(image.astype(int) - image[::-1]).mean() < 0.5 and abs(image.astype(int) - image[:, ::-1]).mean() < 0.5


def test_export(tmp_path):
    export(tmp_path / "scenes", 5, 56, seed=1, split="test")
    lines = [json.loads(line) for line in (tmp_path / "scenes/captions.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    for index, line in enumerate(lines):
        pixels, text = ScenesDataset(56, 1, "test", 5)[index]
        assert line["caption"] == text == (tmp_path / f"scenes/{index:06}.txt").read_text().strip()
        with Image.open(tmp_path / "scenes" / line["image"]) as image:
            assert torch.equal(scenes.to_pixels(np.asarray(image)), pixels)


def test_bad_arguments():
    with pytest.raises(ValueError, match="split"):
        sample_scene(random.Random(0), "validation")
    with pytest.raises(ValueError, match="category"):
        sample_scene(random.Random(0), category="colours")
    with pytest.raises(IndexError):
        ScenesDataset(56, length=3)[3]


def test_captions_are_judged():
    dataset = ScenesDataset(56, seed=9, split="test", length=200)
    for index in range(200):
        scene, _, caption = dataset.scene(index)
        assert judge(caption, scene)["true"], (caption, scene)
    others = [dataset.scene(index)[2] for index in range(200)]
    assert sum(judge(others[index - 1], dataset.scene(index)[0])["true"] for index in range(200)) < 20
