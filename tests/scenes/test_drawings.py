"""The world of drawings: its folder, its scenes and captions, and what is held out."""

import json
import random
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import drawn
from vgt.scenes import __main__ as command
from vgt.scenes import drawing_captions, drawing_files
from vgt.scenes.drawings import (
    BACKGROUNDS,
    CATEGORIES,
    RULE,
    Drawings,
    DrawingsDataset,
    held_out,
    is_held_out,
    render,
    sample,
)
from vgt.scenes.world import Item, Request


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return Drawings(drawn.folder(tmp_path_factory.mktemp("drawings")))


@pytest.fixture(scope="module")
def train(drawings):
    return [sample(drawings, random.Random(index), "train") for index in range(3000)]


EMOJI = {
    "🚀": ("rocket", "Travel & Places"),
    "🤠": ("piñata", "Activities"),
    "❤": ("red heart", "Smileys & Emotion"),
    "🇫": ("flag of somewhere", "Flags"),
    "🔟": ("keycap 10", "Symbols"),
    "🧑": ("person frowning", "People & Body"),
    "👨": ("man frowning", "People & Body"),
    "👩": ("woman", "People & Body"),
}


def test_the_command_renders_what_is_a_thing_of_its_own(tmp_path, capsys):
    pytest.importorskip("resvg_py")
    packages = drawn.packages(tmp_path / "packages", EMOJI)
    assert command.main(["drawings", str(tmp_path / "out"), "--packages", str(packages)]) == 0
    assert "8 drawings" in capsys.readouterr().out
    listed = json.loads((tmp_path / "out/drawings.json").read_text(encoding="utf-8"))
    # No flags, no text, no shape of the other world, nothing that differs from another in its gender alone.
    names = ["rocket", "pinata", "person frowning", "woman"]
    assert [entry["name"] for entry in listed["drawings"]] == 2 * names
    assert {licence["licence"] for licence in listed["licences"]} == {"MIT", "Apache-2.0"}
    pixels = load_file(tmp_path / "out/drawings.safetensors")["pixels"]
    assert pixels.shape == (8, drawing_files.SIDE, drawing_files.SIDE, 4) and pixels.dtype == np.uint8
    # The disc, which lay off the middle, fills its square.
    alpha = pixels[0, ..., 3]
    middle = drawing_files.SIDE // 2
    assert alpha[middle].min() > 0 and alpha[:, middle].min() > 0 and alpha[0, 0] == 0
    assert tuple(pixels[0, middle, middle, :3]) == (0xDD, 0x22, 0x33)


def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path, capsys, monkeypatch):
    pytest.importorskip("resvg_py")
    assert command.main(["drawings", str(tmp_path / "out"), "--packages", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "npm install --ignore-scripts" in error and "@iconify-json/noto" in error and error.count("\n") == 1
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert command.main(["drawings", str(tmp_path / "out")]) == 1
    assert "pip install" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"vgt\.scenes drawings"):
        Drawings(tmp_path)


def test_training_never_shows_a_held_out_combination(train):
    assert {category for _, category, _ in train} == set(CATEGORIES)
    assert not any(held_out(scene) for scene, _, _ in train)
    for scene, _, text in train:
        names = [item.shape for item in scene.request.items]
        if scene.background != "white":
            assert not any(is_held_out("background", name, scene.background) for name in names), text
        if len(names) == 2:
            assert not is_held_out("pair", *names), text
        elif len(scene.placed) > 1:
            assert not is_held_out("count", names[0], len(scene.placed)), text
    assert {scene.background for scene, _, _ in train} == set(BACKGROUNDS)


def test_a_pair_is_held_out_either_way_round():
    pairs = [(one, other) for one in drawn.NAMES for other in drawn.NAMES if one < other]
    assert all(is_held_out("pair", *pair) == is_held_out("pair", *reversed(pair)) for pair in pairs)
    many = [is_held_out("pair", f"a{index}", f"b{index}") for index in range(4000)]
    assert 0.1 < sum(many) / len(many) < 0.15


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_test_scene_holds_what_its_category_is_about(drawings, category):
    for index in range(60):
        scene, of, text = sample(drawings, random.Random(index), "test", category)
        assert of == category and held_out(scene) == RULE[category]
        assert scene.background == "white" or scene.request.background == scene.background
        for name in (item.shape for item in scene.request.items):
            known = (name, drawing_captions.plural(name), *drawing_captions.ALIASES.get(name, ()))
            assert any(word in text for word in known), (name, text)


def test_what_a_caption_leaves_open_is_always_the_same(train, drawings):
    for scene, category, text in train:
        if category == "drawing" and not any(word in text for word in _SIZES_AND_PLACES):
            (thing,) = scene.placed
            assert 0.7 < thing.size < 0.8 and abs(thing.x - 0.5) < 0.02 and abs(thing.y - 0.5) < 0.02
        assert ("shaded" in text) == (drawings.all[scene.placed[0].row].style == "shaded")
        assert not any(thing.mirrored for thing in scene.placed)
    loose = [sample(drawings, random.Random(index), "train", "drawing", free=True)[0].placed[0] for index in range(200)]
    assert any(thing.mirrored for thing in loose) and max(t.size for t in loose) - min(t.size for t in loose) > 0.4


_SIZES_AND_PLACES = ("small", "little", "tiny", "large", "big", "huge", "left", "right", "top", "bottom")


def test_drawings_lie_apart_and_within_the_picture(train):
    for scene, _, _ in train:
        boxes = [(t.x - t.size / 2, t.y - t.size / 2, t.x + t.size / 2, t.y + t.size / 2) for t in scene.placed]
        assert all(left > 0 and top > 0 and right < 1 and low < 1 for left, top, right, low in boxes)
        for index, a in enumerate(boxes):
            for b in boxes[index + 1 :]:
                gap = max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
                assert gap > 0.06
        if len(scene.request.items) == 2 and scene.request.relation is None:
            one, other = scene.placed  # named from left to right
            assert other.x - one.x > 0.4


def test_words():
    texts = {
        "cherry": "cherries",
        "pot of food": "pots of food",
        "fox": "foxes",
        "wolf": "wolves",
        "snowman": "snowmen",
    }
    texts |= {"kitchen knife": "kitchen knives", "key": "keys", "mouse": "mice"}
    assert {one: drawing_captions.plural(one) for one in texts} == texts
    articles = {"apple": "an apple", "unicorn": "a unicorn", "french fries": "french fries", "octopus": "an octopus"}
    articles |= {"glass of milk": "a glass of milk", "hot springs": "hot springs", "cactus": "a cactus"}
    assert {words: drawing_captions.with_article(words) for words in articles} == articles
    request = Request("position", (Item("fox"), Item("kite")), "above", "black")
    said = {drawing_captions.describe(request, random.Random(index)) for index in range(400)}
    assert "a fox on top of a kite on a black background" in said and "a kite with a fox above it on black" in said
    said = {drawing_captions.describe(Request("", (Item("automobile"),)), random.Random(index)) for index in range(99)}
    assert "a car" in said and "an automobile" in said


def test_a_seed_is_a_data_set(tmp_path):
    folder = drawn.folder(tmp_path)
    dataset = DrawingsDataset(56, folder, seed=3, length=40)
    pixels, text = dataset[5]
    assert pixels.shape == (3, 56, 56) and pixels.dtype == torch.float32 and 0 <= pixels.min() <= pixels.max() <= 1
    again, same = DrawingsDataset(56, folder, seed=3)[5]
    assert torch.equal(pixels, again) and text == same
    assert [DrawingsDataset(56, folder, seed=4)[index][1] for index in range(8)] != [dataset[i][1] for i in range(8)]
    kinds = {dataset.scene(index)[1] for index in range(40)}
    assert kinds & {"drawing", "background"} and kinds & {"single_object", "colors", "color_attr", "two_object"}
    assert "Microsoft" in dataset.attribution and "Apache-2.0" in dataset.attribution
    with pytest.raises(IndexError):
        dataset[40]


def test_a_render_shows_the_drawing_where_the_scene_has_it(drawings):
    scene, _, _ = sample(drawings, random.Random(1), "train", "background")
    image = render(drawings, scene, 112)
    assert tuple(image[0, 0]) == BACKGROUNDS[scene.background]
    (thing,) = scene.placed
    centre = image[round(thing.y * 112), round(thing.x * 112)]
    side = drawings.pixels.shape[1]
    assert abs(centre.astype(int) - drawings.pixels[thing.row][side // 2, side // 2, :3]).max() < 40


def test_bad_arguments(drawings):
    with pytest.raises(ValueError, match="split"):
        sample(drawings, random.Random(0), "validation")
    with pytest.raises(ValueError, match="category"):
        sample(drawings, random.Random(0), category="colors")
