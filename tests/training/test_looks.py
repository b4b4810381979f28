"""Words get the look of what they name."""

import pytest
import torch

from drawn import NAMES, folder
from miniatures import HELD_OUT, SCENES, autoencoder, captioner, generator
from vgt.scenes.drawings import DrawingsDataset
from vgt.training import autoencoder_command, captioner_command, generator_command
from vgt.training.base_model import load_base
from vgt.training.looks import components, give_looks, word_looks
from vgt.training.settings import TrainingError


def test_a_things_words_add_up_to_its_components():
    """Of 40 things, each named by two of 30 words; the words that stand in all captions tell nothing."""
    seeded = torch.Generator().manual_seed(0)
    own = torch.randn(30, 50, generator=seeded)
    pairs = [torch.randperm(30, generator=seeded)[:2].tolist() for _ in range(40)]
    codes = components(torch.stack([own[one] + own[other] for one, other in pairs]), 12)
    torch.testing.assert_close(codes.square().mean(0), torch.ones(12))
    torch.testing.assert_close(codes.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    captions = [[[30, *pair], [*pair[::-1], 31, 30]] * 20 for pair in pairs]
    looks = word_looks(codes, captions, 33)
    said = torch.stack([looks[[30, *pair]].sum(0) for pair in pairs])
    assert torch.nn.functional.cosine_similarity(said, codes).min() > 0.99
    assert (looks[32] == 0).all()


def test_names_take_their_looks_and_keep_the_rest():
    seeded = torch.Generator().manual_seed(0)
    embedding, looks = torch.randn(9, 16, generator=seeded) / 5, torch.zeros(9, 4)
    looks[2:5] = torch.randn(3, 4, generator=seeded)
    changed = give_looks(embedding, looks, 1)
    assert torch.equal(changed[[0, 1, 5, 8]], embedding[[0, 1, 5, 8]])
    axes = torch.linalg.qr(torch.randn(16, 4, generator=torch.Generator().manual_seed(1)))[0]
    ratio = (changed[2:5] @ axes) / looks[2:5]
    assert torch.allclose(ratio, ratio[0, 0], atol=1e-5) and ratio[0, 0] > 0
    others = torch.eye(16) - axes @ axes.T
    assert torch.allclose(changed[2:5] @ others, embedding[2:5] @ others, atol=1e-6)


def test_drawings_list_their_things(tmp_path):
    things = list(DrawingsDataset(56, folder(tmp_path)).things())
    assert len(things) == len(NAMES)
    for (captions, pictures), name in zip(things, NAMES):
        assert all(name.split()[-1][:4] in text for text in captions[:3]), (name, captions)
        assert pictures.shape == (4, 3, 56, 56)
        large, small = ((picture != picture[:, :1, :1]).float().mean() for picture in pictures[::2])
        assert large > 2 * small > 0


def test_a_generator_begins_with_them(tmp_path):
    captioner_command.run(captioner(steps=1), tmp_path / "base", None)
    autoencoder_command.run(autoencoder(tmp_path / "base", steps=1), tmp_path / "ae", None)
    config = generator(tmp_path / "base", tmp_path / "ae", steps=1, learning_rate=1e-9)
    config["data"] = {**SCENES, "kind": "drawings", "folder": str(folder(tmp_path / "drawings")), "count": 8}
    config["generator"]["looks"] = 8
    generator_command.run(config, tmp_path / "out", None)
    before = load_base(tmp_path / "base" / "base").language_state["embed_tokens.weight"]
    made = generator_command.read_checkpoint(tmp_path / "out" / generator_command.FILE)
    after = made.tensors["generator.language_model.embed_tokens.weight"].float()
    changed = (after - before).abs().amax(1) > 0.05 * before.square().mean().sqrt()
    assert 5 < changed.sum() < 100
    for looks, data, said in (
        (8, {**config["data"], **HELD_OUT}, "is for a base model that learns drawings"),
        (33, config["data"], "looks is 33; an embedding has 32 numbers"),
        (0, config["data"], "looks is 0; it must be a whole number from 1 on"),
    ):
        config["generator"]["looks"] = looks
        with pytest.raises(TrainingError, match=said):
            generator_command.run({**config, "data": data}, tmp_path / "other", None)
