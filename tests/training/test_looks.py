"""Words get the look of what they name."""

from dataclasses import replace

import pytest
import torch

from drawn import NAMES, folder
from vgt.config import FlowHeadConfig, GeneratorConfig, LanguageModelConfig
from vgt.scenes.drawings import DrawingsDataset
from vgt.training.build import new_generator, seeded
from vgt.training.looks import READER, check_looks, components, give_looks, word_looks
from vgt.training.settings import TrainingError

LANGUAGE = LanguageModelConfig(width=64, depth=2, heads=2, kv_heads=2, head_width=16, mlp_width=96, vocabulary=40)


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


def given(std: float) -> tuple:
    """A generator with looks of words 3 to 7, the looks, and the axes that they lie along; weights of a deviation."""
    config = GeneratorConfig(LANGUAGE, FlowHeadConfig(32, 1), (2, 2))
    generator = new_generator(config, "qwen2_5_vl", 0)
    with seeded(1), torch.no_grad():
        for name, parameter in generator.language_model.named_parameters():
            if "bias" in name or parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=std)
    looks = torch.zeros(40, 20)
    looks[3:8] = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    give_looks(generator, looks, 1, 2)
    axes = torch.linalg.qr(torch.randn(64, 23, generator=torch.Generator().manual_seed(2)))[0][:, :20]
    return generator, looks, axes


@torch.no_grad()
def read(generator, axes, words: list[int]):
    """What the second layer's attention brings along the axes to words and to a query after them."""
    model = generator.language_model
    query = generator.position_queries(2, 2)[1][:1]
    x = torch.cat((model.embed_tokens.weight[words], query))[None]
    cos, sin = model.rotary(torch.arange(x.shape[1])[None], x.dtype)
    x = model.layers[0](x, cos, sin, None, 0, None, None)
    layer = model.layers[READER]
    return layer.self_attn(layer.input_layernorm(x), cos, sin, None, 0, None, None)[0] @ axes


def test_a_query_reads_the_sum_of_the_names_looks():
    generator, looks, axes = given(0.03)
    told = generator.language_model.embed_tokens.weight.detach() @ axes
    assert torch.cosine_similarity(told[3:8], looks[3:8]).min() > 0.9999
    one = read(generator, axes, [1, 20, 3])[-1]
    assert torch.cosine_similarity(one, told[3], dim=0) > 0.95
    assert one.norm().item() == pytest.approx(told[3].norm().item(), rel=0.3)
    *words, both = read(generator, axes, [1, 20, 3, 21, 22, 5])
    assert torch.cosine_similarity(both, looks[3] + looks[5], dim=0) > 0.95
    assert both.norm() > 0.8 * (told[3] + told[5]).norm()
    assert max(word.norm() for word in (*words, read(generator, axes, [1, 20, 21, 22])[-1])) < 0.25 * one.norm()


def test_no_layer_drowns_what_words_bring():
    model = given(0.3)[0].language_model
    words = model.embed_tokens.weight.detach()
    torch.testing.assert_close(words[3:8].norm(dim=1), torch.full((5,), 4.0), atol=1e-3, rtol=0)
    with torch.no_grad():
        x = words[:, None]
        rotary = model.rotary(torch.zeros(40, 1, dtype=torch.long), x.dtype)
        added = model.layers[0](x, *rotary, None, 0, None, None) - x
    assert added.norm(dim=-1).mean() < 12


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ({"qk_norm": True}, "whose queries have a bias"),
        ({"depth": 1}, "of 2 layers and more"),
        ({"kv_heads": 1}, r"heads \(1 of 16 numbers\) .* carry 16"),
    ],
)
def test_a_language_model_that_cannot_carry_them_is_refused(language, said):
    with pytest.raises(TrainingError, match=said):
        check_looks(20, replace(LANGUAGE, **language))


def test_drawings_list_their_things(tmp_path):
    things = list(DrawingsDataset(56, folder(tmp_path)).things())
    assert len(things) == len(NAMES)
    for (captions, pictures), name in zip(things, NAMES):
        assert all(name.split()[-1][:4] in text for text in captions[:3]), (name, captions)
        assert pictures.shape == (4, 3, 56, 56)
        large, small = ((picture != picture[:, :1, :1]).float().mean() for picture in pictures[::2])
        assert large > 2 * small > 0
