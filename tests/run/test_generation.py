"""Prompt to latent: the recorded runs, and what holds for seeds, batches, known tokens and decoding."""

import pytest
import torch

import recorded
import vgt
from vgt.run.generation import draw_noise

SMALL = {"height": 112, "width": 112, "cfg": 3.0, "flow": vgt.FlowSettings(steps=3)}


@pytest.fixture(scope="module")
def models():
    return {family: vgt.load(recorded.FIXTURES / family) for family in recorded.FAMILIES}


@pytest.fixture(params=recorded.FAMILIES)
def model(request, models):
    return models[request.param]


@pytest.mark.parametrize("family, case", list(recorded.cases()))
def test_recorded_run(models, family, case):
    expected = recorded.tensors(family, case)
    latent = models[family].generate(**recorded.settings(case), noise=expected["noise"])
    assert (latent - expected["latents"]).abs().max() < recorded.TOLERANCE
    assert (models[family].decode(latent) - expected["image"]).abs().max() < recorded.TOLERANCE


@pytest.mark.parametrize("family, case", list(recorded.cases()))
def test_recorded_tokens(models, family, case):
    expected = recorded.tensors(family, case)
    negatives = [case.get("negative")] * len(case["prompts"]) if case["cfg"] > 1 else None
    text = models[family].tokenizer(case["prompts"], negatives)
    assert text.ids.equal(expected["input_ids"])
    assert list(text.lengths) == expected["attention_mask"].sum(1).tolist()


def test_an_image_does_not_depend_on_its_batch(model):
    batch = model.generate(["a cat"] * 4, seed=7, tokens_per_step=4, **SMALL)
    for index in range(4):
        one = model.generate("a cat", seed=7, tokens_per_step=4, batch_index=[index], **SMALL)
        assert (one[0] - batch[index]).abs().max() < 1e-4
    assert (batch[0] - batch[1]).abs().max() > 0.1


def test_noise_of_a_seed():
    noise = draw_noise(5, [0, 1, 2], 16, 4)
    assert noise.shape == (3, 16, 4, 32)
    assert draw_noise(5, [2, 0], 16, 4).equal(noise[[2, 0]])
    assert not draw_noise(6, [0], 16, 4).equal(noise[:1])
    assert draw_noise(2**64 - 1, [0], 1, 1).isfinite().all()


def test_the_same_seed_gives_the_same_picture_twice(model):
    first = model.generate("a cat", seed=3, **SMALL)
    assert model.generate("a cat", seed=3, **SMALL).equal(first)
    assert not torch.allclose(model.generate("a cat", seed=4, **SMALL), first, atol=0.1)


def test_latents_are_normalised(model):
    latent = model.generate("a cat", tokens_per_step=16, **SMALL)
    assert latent.mean(1).abs().max() < 1e-5
    assert (latent.var(1, unbiased=False) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
@pytest.mark.parametrize("tokens_per_step", [1, 4])
def test_known_tokens_come_back_bit_for_bit(model, decoding, tokens_per_step):
    latent = model.generate("a cat", seed=1, tokens_per_step=8, **SMALL)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:4] = True
    options = SMALL | {"decoding": decoding, "tokens_per_step": tokens_per_step}
    again = model.generate("a dog", seed=2, latent=latent, mask=mask, **options)
    assert again[:, :, ~mask].equal(latent[:, :, ~mask])
    assert ((again - latent)[:, :, mask].abs().amax(1) > 0.01).all()
    # what is known is read: other known tokens lead to other drawn ones
    other = model.generate("a dog", seed=2, latent=-latent, mask=mask, **options)
    assert (other - again)[:, :, mask].abs().max() > 0.01


def test_masks_of_nothing_and_everything(model):
    latent = model.generate("a cat", seed=1, tokens_per_step=8, **SMALL)
    nothing = torch.zeros(4, 4, dtype=torch.bool)
    assert model.generate("a dog", latent=latent, mask=nothing, **SMALL).equal(latent)
    plain = model.generate("a dog", **SMALL)
    assert model.generate("a dog", latent=latent, mask=~nothing, **SMALL).equal(plain)


@pytest.mark.parametrize("tokens_per_step", [1, 2, 4])
def test_consistent_decoding_is_the_sequence_of_training(model, tokens_per_step):
    """Each drawn token's condition equals that of one causal pass over `text <img> q l q l …` without padding."""
    settings = SMALL | {"cfg": 1.0, "tokens_per_step": tokens_per_step, "decoding": "training-consistent"}
    noise = draw_noise(0, [0], 16, 3)
    latent = model.generate("a cat", noise=noise, **settings)
    # the last group's first token, drawn again after all that was committed before its group
    order = vgt.run.order.draw_order(4, 4, "random", 0)
    mask = torch.zeros(16, dtype=torch.bool)
    mask[order[-tokens_per_step]] = True
    given = latent.clone().flatten(2)
    before = order[:-tokens_per_step]
    assert len(before) + tokens_per_step == 16
    if tokens_per_step == 1:
        again = model.generate("a cat", noise=noise, latent=latent, mask=mask.view(4, 4), **settings)
        assert (again - latent).abs().max() < 1e-4
    else:
        # the tokens of one group do not see each other: drawing the group anew from what came before gives it again
        mask[order[-tokens_per_step:]] = True
        given[:, :, mask] = 0
        again = model.generate("a cat", noise=noise, latent=given.view_as(latent), mask=mask.view(4, 4), **settings)
        assert (again - latent).abs().max() < 1e-4


def test_both_decodings_agree_at_one_token_a_step(models):
    """InternVL3, no padding (guidance off, one prompt): published and training-consistent are the same computation."""
    settings = SMALL | {"cfg": 1.0}
    published = models["internvl3"].generate("a cat", **settings)
    consistent = models["internvl3"].generate("a cat", decoding="training-consistent", **settings)
    assert consistent.equal(published)
    guided = models["internvl3"].generate("a cat", **SMALL)  # rows of different lengths: padding is seen
    assert not guided.equal(models["internvl3"].generate("a cat", decoding="training-consistent", **SMALL))


def test_training_consistent_images_do_not_depend_on_the_other_prompts(model):
    settings = SMALL | {"tokens_per_step": 4, "decoding": "training-consistent"}
    long = "a very long description of nothing in particular, for the sake of its length"
    together = model.generate(["a cat", long], seed=1, **settings)
    assert (model.generate("a cat", seed=1, **settings) - together[:1]).abs().max() < 1e-4


def test_settings_matter(model):
    base = model.generate("a cat", **SMALL)
    steps = {"flow": vgt.FlowSettings(steps=3, solver="euler")}
    calm = {"flow": vgt.FlowSettings(steps=3, temperature=0.5)}
    for change in ({"cfg_schedule": "constant"}, {"order": "sequential"}, {"negative": "a dog"}, steps, calm):
        assert not torch.allclose(model.generate("a cat", **SMALL | change), base, atol=1e-3), change
    still = SMALL | {"flow": vgt.FlowSettings(steps=3, temperature=0), "order_seed": 0}
    assert model.generate("a cat", seed=1, **still).equal(model.generate("a cat", seed=2, **still))


def test_progress_counts_tokens_and_can_end_the_run(model):
    seen = []

    def watch(progress):
        assert progress.known.sum() == progress.done
        assert progress.latent.abs().amax(1)[0].gt(0).sum() == progress.done
        seen.append((progress.done, progress.total))
        if progress.done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate("a cat", tokens_per_step=4, progress=watch, **SMALL)
    assert seen == [(4, 16), (8, 16)]


def test_one_flow_step_and_an_empty_prompt(model):
    latent = model.generate("", **SMALL | {"flow": vgt.FlowSettings(steps=1)})
    assert latent.isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"height": 100}, "multiples of 28"),
        ({"height": 0}, "multiples of 28"),
        ({"width": 476}, "at most 448x448"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": "word " * 5000}, "shorten it"),
        ({"negative": "word " * 5000}, "negative prompt"),
        ({"negative": ["a", "b"]}, "2 negative prompts for 1"),
        ({"tokens_per_step": 0}, "tokens_per_step"),
        ({"order": "zigzag"}, "order"),
        ({"decoding": "odd"}, "decoding"),
        ({"grouping": "odd"}, "grouping"),
        ({"cfg_schedule": "odd"}, "cfg_schedule"),
        ({"noise": torch.zeros(1, 16, 4, 32)}, "noise"),
        ({"latent": torch.zeros(1, 4, 4, 4), "mask": torch.ones(4, 4, dtype=torch.bool)}, "latent"),
        ({"latent": torch.full((1, 32, 4, 4), torch.nan), "mask": torch.ones(4, 4, dtype=torch.bool)}, "NaN"),
    ],
)
def test_bad_input_is_one_sentence(models, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        models["qwen2_5_vl"].generate(**{"prompts": "a cat", **SMALL, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"last_step": 0}, {"last_step": 1}, {"solver": "x"}, {"temperature": -1}]
)
def test_flow_settings_refuse_what_cannot_be(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        vgt.FlowSettings(**change)


def test_a_tokenizer_cannot_generate():
    model = vgt.load(recorded.FIXTURES / "internvl3" / "vgt_ae_internvl3.pth")
    assert model.encode(torch.rand(1, 3, 56, 84)).shape == (1, 32, 2, 3)
    with pytest.raises(ValueError, match="tokenizer only"):
        model.generate("a cat")
