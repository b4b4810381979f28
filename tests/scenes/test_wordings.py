"""Other wordings become those of the captions, and captions stay what they are."""

import json
import random
import re

import pytest

import drawn
from vgt.files.reading import read_checkpoint
from vgt.model import build_tokenizer
from vgt.scenes.drawings import Drawings, sample
from vgt.scenes.wordings import WORDINGS, words
from vgt.scenes.world import sample_scene
from vgt.training.text import prompt_normaliser

READ = {
    "A red circle, a blue square!": "a red circle and a blue square",
    "RED circle above blue square": "a red circle above a blue square",
    "a blue square with a red circle above it": "a blue square below a red circle",
    "the star is on top of the heart": "a star above a heart",
    "orange disk on grey": "an orange circle on gray",
    "Navy background, a pink heart": "a pink heart, navy background",
    "a couple of violet stars": "two purple stars",
    "a red circle on the left and a blue square on the right": "a red circle left of a blue square",
    "Red star on the right, heart on the left, mint background": "a red star right of a heart, mint background",
    "on the left a red circle, on the right a blue square": "a red circle left of a blue square",
    "a star at the top of the picture and a heart below, on white": "a star above a heart, on white",
    "a red circle on the right of a star and a heart": "a red circle on the right of a star and a heart",
    "An image with a brown heart": "an image of a brown heart",
    "a black cat, five red circles": "a black cat, five red circles",
}


@pytest.fixture(scope="module")
def captions():
    drawn = []
    for index in range(3000):
        split = ("train", "test")[index % 2]
        drawn.append(sample_scene(random.Random(f"wordings {index}"), split)[2])
    return drawn


def test_every_caption_stays_as_it_is(captions):
    normaliser = prompt_normaliser(WORDINGS)
    assert [caption for caption in captions if normaliser.normalize_str(caption) != caption] == []


def test_the_words_are_those_of_the_captions(captions):
    said = {word for caption in captions for word in re.findall(r"\w+", caption)}
    assert said == set(words())


@pytest.mark.parametrize("typed", READ)
def test_a_wording_is_read_as_a_caption(typed):
    assert prompt_normaliser(WORDINGS).normalize_str(typed) == READ[typed]


def test_the_file_reads_captions_as_it_did_in_training(bundled_model, tmp_path):
    """Its wordings change no caption: the ids of the whole text, template included, are those of lower case alone."""
    drawings = Drawings(drawn.real_folder(tmp_path))
    captions = [sample(drawings, random.Random(f"wordings {index}"))[2] for index in range(500)]
    checkpoint = read_checkpoint(bundled_model)
    plain = json.loads(checkpoint.tokenizer_json)
    assert plain["normalizer"]["type"] == "Sequence"
    plain["normalizer"]["normalizers"] = [{"type": "NFC"}, {"type": "Lowercase"}]
    after = build_tokenizer(checkpoint)
    checkpoint.tokenizer_json = json.dumps(plain).encode()
    before = build_tokenizer(checkpoint)
    for caption in captions:
        one, other = before([caption], [None]), after([caption], [None])
        assert one.lengths == other.lengths
        assert (one.ids == other.ids).all()
    assert before.image_start == after.image_start


def test_the_tokenizer_tells_what_training_never_showed(bundled_model):
    tokenizer = build_tokenizer(read_checkpoint(bundled_model))
    asked = "A Fox who juggles fifty zeppelins on a MINT background, a fox in Zanzibar"
    assert tokenizer.never_seen(asked) == ["who", "juggles", "fifty", "zeppelins", "zanzibar"]
    assert tokenizer.never_seen("A red gizmo, two Strawberries!") == ["gizmo"]


def test_a_model_whose_file_names_no_words_says_nothing(bundled_model):
    checkpoint = read_checkpoint(bundled_model)
    checkpoint.vocabulary = None
    assert build_tokenizer(checkpoint).never_seen("a cat") == []
