"""Steering a run: regions, changes of prompt and cfg, orders, and runs that stop and go on."""

import pytest
import torch

import recorded
import vgt
from bundled import SIDE
from vgt import Change, Region
from vgt.run.control import cfg_scales, prompt_mixes
from vgt.run.order import ORDERS, draw_order
from vgt.run.plan import make_plan

SMALL = {"height": 112, "width": 112, "cfg": 3.0, "seed": 2, "flow": vgt.FlowSettings(steps=2)}
EVERYWHERE = torch.ones(8, 8)


def half(left):
    mask = torch.zeros(4, 4)
    mask[:, :2] = left
    mask[:, 2:] = 1 - left
    return mask


@pytest.fixture(scope="module", params=recorded.FAMILIES)
def model(request):
    return vgt.load(recorded.FIXTURES / request.param)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_draws_each_place_once(order):
    for height, width in ((1, 1), (4, 4), (3, 5), (5, 2)):
        assert sorted(draw_order(height, width, order, 1)) == list(range(height * width))
        assert draw_order(height, width, order, 1) == draw_order(height, width, order, 1)


def test_orders_begin_where_they_say():
    assert set(draw_order(4, 4, "centre", 3)[:4]) == {5, 6, 9, 10} == set(draw_order(4, 4, "spiral", 3)[:4])
    assert draw_order(3, 3, "spiral", 0) == [4, 3, 6, 7, 8, 5, 2, 1, 0]
    assert all((p // 4 + p % 4) % 2 == 0 for p in draw_order(4, 4, "checkerboard", 3)[:8])
    assert draw_order(4, 4, "centre", 1) != draw_order(4, 4, "centre", 2)


def test_an_order_map_says_what_comes_first():
    bright = torch.zeros(2, 3)
    bright[1, 2], bright[0, 1] = 1.0, 0.5
    order = draw_order(2, 3, "random", 4, bright)
    assert order[:2] == [5, 1] and order[2:] == [p for p in draw_order(2, 3, "random", 4) if p not in (5, 1)]
    with pytest.raises(ValueError, match="order map"):
        draw_order(2, 2, "random", 0, bright)


@pytest.mark.parametrize("tokens_per_step", [1, 4])
@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
def test_one_region_that_covers_all_is_the_plain_run(model, tokens_per_step, decoding):
    settings = {**SMALL, "tokens_per_step": tokens_per_step, "decoding": decoding}
    plain = model.generate("a red circle", **settings)
    assert model.generate("something else", regions=[Region("a red circle", EVERYWHERE)], **settings).equal(plain)
    nowhere = Region("a dog", torch.zeros(4, 4))
    assert model.generate("a red circle", regions=[nowhere], **settings).equal(plain)
    assert model.generate("a red circle", regions=[Region("a dog", EVERYWHERE, strength=0)], **settings).equal(plain)


def test_a_region_draws_from_its_own_prompt(model):
    """The first token, before which nothing is drawn that others could have changed, is that of its region's prompt."""
    settings = {**SMALL, "decoding": "training-consistent"}  # in which rows do not feel one another's padding

    def first_token(prompt, regions=()):
        drawn = []
        model.generate(prompt, regions=regions, progress=lambda p: drawn.append(p.latent.clone()), **settings)
        return drawn[0]

    (place, *_) = draw_order(4, 4, "random", SMALL["seed"])
    inside = half(1) if half(1).flatten()[place] else half(0)
    for mine, other in (("a star", "two small hearts"), ("two small hearts", "a star")):
        got = first_token("both of them", [Region(mine, inside), Region(other, 1 - inside)])
        torch.testing.assert_close(got, first_token(mine), rtol=0, atol=1e-4)
        assert (got - first_token(other)).abs().max() > 1e-3


def test_equal_prompts_in_two_regions_are_the_plain_run(model):
    plain = model.generate("a star", **SMALL)
    regions = [Region("a star", half(1)), Region("a star", half(0), strength=0.5, feather=1)]
    torch.testing.assert_close(model.generate("a star", regions=regions, **SMALL), plain, rtol=0, atol=1e-4)


def test_seams_are_weighted_and_weights_add_up():
    groups = [[place] for place in range(16)]
    shares = [place / 16 for place in range(16)]
    regions = [Region("a", half(1), feather=1), Region("b", half(0), strength=0.5)]
    texts, mixes = prompt_mixes((4, 4), groups, shares, regions, [])
    assert texts == [None, "a", "b"]
    for (mix,) in mixes:
        assert sum(weight for _, weight in mix) == pytest.approx(1)
    assert mixes[0][0] == ((1, 1.0),)  # the left edge is the first region's alone
    assert dict(mixes[1][0])[1] == pytest.approx(2 / 3)
    assert dict(mixes[3][0])[2] == pytest.approx(0.5)


def test_changes_hold_from_their_share_on():
    groups, shares = [[place] for place in range(10)], [place / 10 for place in range(10)]
    texts, mixes = prompt_mixes((2, 5), groups, shares, [], [Change(0.5, prompt="later")])
    assert texts == [None, "later"]
    assert [mix for (mix,) in mixes] == [((0, 1.0),)] * 5 + [((1, 1.0),)] * 5
    _, mixes = prompt_mixes((2, 5), groups, shares, [], [Change(0.4, prompt="later", ramp="linear")])
    assert [round(dict(mix).get(1, 0), 6) for (mix,) in mixes[:5]] == [0, 0.25, 0.5, 0.75, 1]
    scales = cfg_scales([4.0] * 10, shares, [Change(0.2, cfg=2.0), Change(0.6, cfg=6.0, ramp="linear")])
    assert scales == pytest.approx([4, 4, 2, 3, 4, 5, 6, 6, 6, 6])


@pytest.mark.parametrize("tokens_per_step, grouping", [(1, "uniform"), (3, "uniform"), (4, "cosine")])
@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
@pytest.mark.parametrize("order", ["random", "spiral"])
def test_a_stopped_run_goes_on_bit_for_bit(model, tokens_per_step, grouping, decoding, order):
    settings = {**SMALL, "tokens_per_step": tokens_per_step, "grouping": grouping, "decoding": decoding, "order": order}
    prompts = ["a red circle", "two cats"]
    whole = model.generate(prompts, **settings)
    part = model.generate(prompts, stop_at=0.4, **settings)
    left = (part == 0).all(dim=1)
    assert 0.3 <= 1 - left.float().mean() <= 0.8 and left[0].equal(left[1])
    assert part.equal(torch.where(left[:, None], 0, whole))
    assert model.generate(prompts, latent=part, **settings).equal(whole)
    further = model.generate(prompts, latent=part, mask=left[0], stop_at=0.5, **settings)
    assert model.generate(prompts, latent=further, **settings).equal(whole)


@pytest.mark.parametrize("tokens_per_step, grouping", [(1, "uniform"), (3, "uniform"), (4, "cosine")])
@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
def test_what_a_stopped_run_keeps_spares_reading_and_changes_nothing(model, tokens_per_step, grouping, decoding):
    settings = {**SMALL, "tokens_per_step": tokens_per_step, "grouping": grouping, "decoding": decoding}
    prompts = ["a red circle", "two cats and a dog"]
    whole = model.generate(prompts, **settings)
    beginning = vgt.Beginning()
    part = model.generate(prompts, stop_at=0.3, beginning=beginning, **settings)
    part = model.generate(prompts, latent=part, stop_at=0.3, beginning=beginning, **settings)
    fed = []
    hook = model.generator.language_model.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape))
    try:
        done = model.generate(prompts, latent=part, beginning=beginning, **settings)
    finally:
        hook.remove()
    assert done.equal(whole)
    assert len(fed) == len(beginning.plan.steps) - beginning.steps
    alone = model.generate(prompts[1], latent=part[1:], beginning=beginning, batch_index=[1], **settings)
    if decoding == "training-consistent":  # padding that a shorter prompt has beside a longer one counts in the other
        torch.testing.assert_close(alone, whole[1:], rtol=0, atol=1e-4)


def test_what_a_stopped_run_keeps_is_not_taken_for_another(model, caplog):
    settings = {**SMALL, "decoding": "training-consistent"}
    beginning = vgt.Beginning()
    part = model.generate("a red circle", stop_at=0.4, beginning=beginning, **settings)
    changed = torch.where(part == 0, 0, part + 0.5)
    for prompt, latent in (("a blue star", part), ("a red circle", changed)):
        want = model.generate(prompt, latent=latent, **settings)
        assert model.generate(prompt, latent=latent, beginning=beginning, **settings).equal(want)
    assert not caplog.records
    other = vgt.load(recorded.FIXTURES / "internvl3")
    done = other.generate("a red circle", latent=part, beginning=beginning, **settings)
    assert done.equal(other.generate("a red circle", latent=part, **settings))
    assert "another model began this latent" in caplog.text


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
def test_the_rest_of_a_stopped_run_may_be_drawn_otherwise(model, decoding):
    """All the rest at once: as where the tokens so far are read in one pass, but for the model's own way to count."""
    settings = {**SMALL, "decoding": decoding, "cfg": 1.0}
    beginning = vgt.Beginning()
    part = model.generate("a red circle", stop_at=0.4, beginning=beginning, **settings)
    rest = {**settings, "tokens_per_step": 99}
    got = model.generate("a red circle", latent=part, beginning=beginning, **rest)
    assert got.equal(torch.where(part == 0, got, part)) and (got != 0).any(dim=1).all()
    if decoding == "training-consistent":
        torch.testing.assert_close(got, model.generate("a red circle", latent=part, **rest), rtol=0, atol=1e-4)


def test_a_stopped_run_goes_on_with_regions_and_changes(model):
    steering = {
        "regions": [Region("a dog", half(1), feather=1)],
        "changes": [Change(0.5, prompt="a boat", cfg=2.0)],
        "order_map": torch.arange(16.0).view(4, 4),
    }
    whole = model.generate("a cat", **steering, **SMALL)
    part = model.generate("a cat", stop_at=0.3, **steering, **SMALL)
    assert model.generate("a cat", latent=part, **steering, **SMALL).equal(whole)


def test_locked_tokens_stay_in_a_steered_run_that_stops_and_goes_on(model):
    encoded = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = False
    steering = {
        "regions": [Region("a dog", half(1), feather=1)],
        "changes": [Change(0.5, prompt="a boat", cfg=2.0)],
        "order_map": torch.arange(16.0).view(4, 4),
    }
    whole = model.generate("a cat", latent=encoded, mask=mask, **steering, **SMALL)
    assert whole[..., ~mask].equal(encoded[..., ~mask])
    beginning = vgt.Beginning()
    part = model.generate("a cat", latent=encoded, mask=mask, stop_at=0.4, beginning=beginning, **steering, **SMALL)
    assert model.generate("a cat", latent=part, beginning=beginning, **steering, **SMALL).equal(whole)


def test_a_plan_prints_all_of_it():
    mixes = [(((0, 1.0),),), (((0, 0.5), (1, 0.5)),)]
    plan = make_plan(
        [1, 0], 1, lengths=(3, 3, 2), start=1, given=1, prompts=2, mixes=mixes, cfg=[4.5, 3], flow_steps=[9, 2]
    )
    assert str(plan).splitlines() == [
        "step 0 slot 0: q1+1 given from 1*prompt 0, cfg 4.5, 9 evaluations",
        "step 1 slot 5: l1+2 q0+3 from 0.5*prompt 0+0.5*prompt 1, cfg 3, 2 evaluations",
    ]


def test_a_record_shows_the_run(model):
    record = vgt.RunRecord()
    regions = [Region("a dog", half(1))]
    drawn = model.generate(["a cat"] * 2, regions=regions, record=record, **SMALL)
    assert drawn.equal(model.generate(["a cat"] * 2, regions=regions, **SMALL))
    assert record.spread.shape == (2, 16) and record.spread.min() >= 0 and record.spread.max() <= 1
    assert record.plan.groups == [[place] for place in draw_order(4, 4, "random", SMALL["seed"])]
    picture = record.picture(1)
    assert picture.size == (192, 192)
    first, last = (record.plan.groups[index][0] for index in (0, -1))
    corner = [picture.getpixel((place % 4 * 48 + 2, place // 4 * 48 + 2)) for place in (first, last)]
    assert sum(corner[0]) > sum(corner[1])


def test_the_spread_is_that_of_the_draws(bundled_model):
    """The mean square distance of many draws of one token from their mean is what the record says."""
    model = vgt.load(bundled_model)
    record = vgt.RunRecord()
    settings = {"cfg": 1.0, "seed": 3, "stop_at": (28 / SIDE) ** 2, "order_seed": 3, "flow": vgt.FlowSettings()}
    drawn = model.generate(["a red circle"] * 64, record=record, **settings)
    place = record.plan.groups[0][0]
    tokens = drawn.flatten(2)[:, :, place]
    found = (tokens - tokens.mean(0)).square().mean().item()
    assert record.spread[:, place].mean().item() == pytest.approx(found, abs=0.1)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"stop_at": 0.0}, "stop_at is 0.0"),
        ({"changes": [Change(0.5, cfg=1.0), Change(0.2, cfg=2.0)]}, "put them in order"),
        ({"changes": [Change(0.5, prompt="a"), Change(0.5, prompt="b")]}, "Two changes are at 0.5"),
        ({"order_map": torch.ones(3, 3)}, "order map"),
        ({"latent": torch.zeros(1, 32, 3, 4)}, r"latent is \[1, 32, 3, 4\]"),
        ({"latent": torch.zeros(1, 32, 4, 4), "mask": torch.ones(3, 3, dtype=torch.bool)}, "mask is"),
    ],
)
def test_what_cannot_be_is_one_sentence(model, wrong, says):
    with pytest.raises(ValueError, match=says):
        model.generate("a cat", **wrong, **SMALL)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Region("a", torch.ones(2, 2, 2)), "mask is"),
        (lambda: Region("a", [[1.0]]), "mask is a list"),
        (lambda: Region("a", torch.ones(2, 2), strength=2), "strength is 2"),
        (lambda: Region("a", torch.ones(2, 2), feather=-1), "feather is -1"),
        (lambda: Change(1.5), "starts at 1.5"),
        (lambda: Change(0.5, ramp="curve"), "ramp is 'curve'"),
        (lambda: Change(0.5, cfg=float("nan")), "cfg is nan"),
        (lambda: vgt.SamplingSettings(cfg=float("inf")), "cfg is inf"),
    ],
)
def test_what_no_run_can_have(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_the_command_line_steers(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from vgt.__main__ import main

    monkeypatch.chdir(tmp_path)
    left = Image.new("L", (112, 112), 0)
    left.paste(255, (0, 0, 56, 112))
    left.save("left.png")
    model = str(recorded.FIXTURES / "internvl3")
    base = [
        "generate",
        model,
        "a cat",
        "out.png",
        "--width=112",
        "--height=112",
        "--steps=2",
        "--device=cpu",
        "--force",
    ]
    steer = ["--region", "a dog", "left.png", "1", "1", "--change", "0.5", "a boat", "--cfg-change", "0.5", "2"]
    steer += ["--order-map", "left.png", "--plan", "plan.png"]
    assert main([*base, *steer, "--latent", "whole.safetensors"]) == 0
    assert main([*base, *steer, "--stop-at", "0.4", "--latent", "part.safetensors"]) == 0
    assert main([*base, *steer, "--go-on", "part.safetensors", "--latent", "done.safetensors"]) == 0
    from safetensors.torch import load_file

    whole, part, done = (load_file(f"{name}.safetensors")["latent"] for name in ("whole", "part", "done"))
    assert done.equal(whole) and not part.equal(whole)
    assert Image.open("plan.png").size == (192, 192)
    assert "repaint" not in capsys.readouterr().err
    other = [base[0], str(recorded.FIXTURES / "qwen2_5_vl"), *base[2:]]
    assert main([*other, "--go-on", "part.safetensors"]) == 0
    assert "part.safetensors was begun with internvl3; here it is a picture to repaint" in capsys.readouterr().err
    capsys.readouterr()
    for wrong, says in (
        (["--stop-at", "0.4"], "give --latent too"),
        (["--region", "a dog"], "takes a mask"),
        (["--region", "a dog", "none.png"], "none.png"),
        (["--order-map", "part.safetensors"], "part.safetensors is no picture"),
        (["--go-on", "left.png"], "holds no latent"),
        (["--go-on", "none.safetensors"], "none.safetensors"),
        (["--go-on", "part.safetensors", "--height=84"], "latent is [1, 32, 4, 4]; for these prompts and this size"),
        (["--change", "0.5", "a boat", "--change", "0.5", "a car"], "Two changes are at 0.5"),
        (["--change", "half", "a boat"], "'half' is no number"),
    ):
        assert main([*base, *wrong]) == 1
        assert says in capsys.readouterr().err
