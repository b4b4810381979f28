"""A generator learns where a caption's things lie, before it draws."""

import random

import pytest
import torch

from drawn import folder
from miniatures import SCENES, autoencoder, captioner, generator, losses
from vgt.families import family
from vgt.files.reading import read_checkpoint
from vgt.prompt import PromptTokenizer
from vgt.scenes.drawing_captions import ALIASES, find_names, plural
from vgt.scenes.drawings import CATEGORIES, Drawings, DrawingsDataset, DrawnScene, sample
from vgt.training import autoencoder_command, captioner_command, generator_command, layout_command
from vgt.training.data import DataError
from vgt.training.layout_data import LayoutDataset
from vgt.training.settings import TrainingError
from vgt.training.text import train_tokenizer

SPECIAL_TOKENS = family("qwen2_5_vl").special_tokens

LANGUAGE = {"width": 48, "depth": 2, "heads": 3, "kv_heads": 3, "head_width": 16, "mlp_width": 64, "max_positions": 512}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("drawings"))


def test_names_are_found_in_every_caption(drawings):
    rng = random.Random(0)
    for number in range(500):
        scene, _, caption = sample(Drawings(drawings), rng, category=CATEGORIES[number % len(CATEGORIES)])
        names = [item.shape for item in scene.request.items]
        for name, (start, end) in zip(names, find_names(caption, names)):
            said = caption[start:end]
            assert any(said in (word, plural(word)) for word in (name, *ALIASES.get(name, ()))), (caption, name)


def test_the_longest_name_is_found_first():
    assert find_names("a cat below a black cat", ["cat", "black cat"]) == [(2, 5), (14, 23)]
    assert find_names("a black cat above a cat", ["cat", "black cat"]) == [(20, 23), (2, 11)]
    assert find_names("two cars", ["automobile"]) == [(4, 8)]
    with pytest.raises(ValueError, match="does not name fox, key"):
        find_names("a fox", ["fox", "key"])


def test_a_prompts_tokens_know_their_characters():
    tokenizer_json = train_tokenizer(["a red circle"] * 9, 300, SPECIAL_TOKENS).encode()
    tokenizer = PromptTokenizer(tokenizer_json, SPECIAL_TOKENS[0])
    prompt = "a red circle"
    spans = tokenizer.spans(prompt)
    assert len(spans) == tokenizer([prompt], None).lengths[0]
    assert spans[0][0] < 0 and spans[-1][0] >= len(prompt)
    inside = [(start, end) for start, end in spans if start >= 0 and end <= len(prompt)]
    assert "".join(prompt[start:end] for start, end in inside) == prompt


def test_places_know_what_they_show(drawings):
    layout = LayoutDataset(DrawingsDataset(112, drawings, length=200, shapes=0.2), 8)
    for index in range(200):
        _, said, names, drawn, measures = layout[index]
        scene = layout.drawings.scene(index)[0]
        assert drawn.shape == (64,) and measures.shape == (64, 7)
        if not isinstance(scene, DrawnScene):
            assert (names == -1).all() and (drawn == -1).all() and (said == 0).all()
            continue
        assert [layout.names[name] for name in names if name >= 0] == [item.shape for item in scene.request.items]
        thing = scene.placed[-1]
        middle = int(thing.y * 8) * 8 + int(thing.x * 8)
        assert drawn[middle] == len(scene.request.items) - 1
        assert measures[middle, 0] == 1 and measures[middle, 3].item() == pytest.approx(thing.size)
        assert measures[middle, 1:3].abs().max() < 0.5
        assert drawn[0] == -1 or len(scene.placed) > 1 or thing.x < 0.4 or thing.size > 0.85
        assert (measures[drawn == -1, :4] == 0).all()


@pytest.fixture(scope="module")
def base(tmp_path_factory, drawings):
    path = tmp_path_factory.mktemp("base")
    data = {"data": {**SCENES, "kind": "drawings", "folder": str(drawings)}}
    captioner_command.run({**captioner(steps=1), **data, "language": LANGUAGE}, path, None)
    autoencoder_command.run(autoencoder(path, steps=1), path / "ae", None)
    return path


def layout(base, drawings, **changes):
    config = generator(base, base / "ae", learning_rate=3e-3, **changes)
    del config["objective"]
    config["data"] = {"kind": "drawings", "folder": str(drawings), "size": 112, "seed": 1, "length": 512}
    return {**config, "layout": {"looks": 16}}


def test_it_learns_and_a_generator_goes_on_from_it(base, drawings, tmp_path):
    config = layout(base, drawings, steps=40, batch_size=32)
    layout_command.run(config, tmp_path / "parts", 20)
    layout_command.run(config, tmp_path / "parts", None)
    layout_command.run(config, tmp_path / "whole", None)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name in ("scores", "look", "measures"):
        begun, ended = (
            sum(part) for part in (losses(tmp_path / "whole", name)[:4], losses(tmp_path / "whole", name)[-4:])
        )
        assert ended < 0.8 * begun, name
    made = tmp_path / "whole" / generator_command.FILE
    further = generator(base, base / "ae", steps=1, learning_rate=1e-9)
    further["init"] = str(made)
    generator_command.run(further, tmp_path / "further", None)
    one, other = (read_checkpoint(path).tensors for path in (made, tmp_path / "further" / generator_command.FILE))
    words = "generator.language_model.embed_tokens.weight"
    torch.testing.assert_close(one[words], other[words], atol=1e-2, rtol=0)


def test_what_it_cannot_do_is_refused(base, drawings, tmp_path):
    config = layout(base, drawings, steps=1)
    with pytest.raises(TrainingError, match=r"layout\.looks is 0; it must be a whole number from 1 on"):
        layout_command.run({**config, "layout": {"looks": 0}}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"layout.looks is 49; .* carry 45"):
        layout_command.run({**config, "layout": {"looks": 49}}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"data\.kind is 'scenes'; what lies where is known of drawings alone"):
        layout_command.run({**config, "data": SCENES}, tmp_path, None)
    with pytest.raises(TrainingError, match=r"lacks layout\.looks"):
        layout_command.run({**config, "layout": {}}, tmp_path, None)
    with pytest.raises((DataError, ValueError), match="is no folder of drawings"):
        layout_command.run({**config, "data": {**config["data"], "folder": str(tmp_path)}}, tmp_path, None)
