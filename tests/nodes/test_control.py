"""Steering a run in a real ComfyUI: regions, schedules, order maps, stopping, choosing and going on."""

import pytest
import torch

import vgt
from graphs import INTERN, STRICT, decode_pixels, draw, fails, node, run_latent, save_image, save_latent
from host import HostError

SIDE = {"width": 112, "height": 112}


def mask(name, value, width=112, height=112):
    return {name: node("SolidMask", value=value, width=width, height=height)}


def left_half(name):
    """A mask of the left half, by the host's own nodes."""
    return {
        **mask(f"{name}_all", 0.0),
        **mask(f"{name}_part", 1.0, width=56),
        name: node(
            "MaskComposite", destination=[f"{name}_all", 0], source=[f"{name}_part", 0], x=0, y=0, operation="add"
        ),
    }


def region(name, prompt, where, **inputs):
    return {name: node("VGTRegion", **{"prompt": prompt, "mask": [where, 0], "strength": 1.0, "feather": 0, **inputs})}


def further(graph, latent, name="further", **inputs):
    """The graph with a second sampler of the same values that goes on with a latent."""
    settings = {**graph["draw"]["inputs"], "latent": latent, "stop_at": 1.0, **inputs}
    return {**graph, name: node("VGTARSampler", **settings)}


def test_a_region_of_all_is_the_plain_run(host, models):
    graph = {**mask("all", 1.0), **region("region", "a photo of a cat", "all")}
    drawn = draw(**SIDE, prompt="something else", regions=["region", 0])
    torch.testing.assert_close(run_latent(host, {**graph, **drawn}), run_latent(host, draw(**SIDE)), **STRICT)


def test_chained_regions_and_a_schedule_are_pythons(host, python_models):
    graph = {
        **left_half("left"),
        **mask("all", 1.0),
        **region("below", "a dog", "all", strength=0.5),
        **region("above", "a boat", "left", feather=1, regions=["below", 0]),
        "first": node("VGTPromptSchedule", start=0.25, prompt="a tree", cfg=2.0, ramp="linear"),
        "second": node("VGTPromptSchedule", start=0.5, prompt=" ", cfg=1.5, ramp="step", schedule=["first", 0]),
    }
    steered = draw(**SIDE, regions=["above", 0], schedule=["second", 0])
    where = torch.zeros(112, 112)
    where[:, :56] = 1
    want = python_models[INTERN].generate(
        "a photo of a cat",
        height=112,
        width=112,
        seed=1,
        cfg=3.0,
        flow=vgt.FlowSettings(steps=2),
        regions=[vgt.Region("a dog", torch.ones(112, 112), 0.5), vgt.Region("a boat", where, feather=1)],
        changes=[vgt.Change(0.25, "a tree", 2.0, "linear"), vgt.Change(0.5, cfg=1.5)],
    )
    torch.testing.assert_close(run_latent(host, {**graph, **steered}), want.cpu(), **STRICT)


@pytest.mark.parametrize("kind", ["mask", "image"])
def test_a_mask_or_a_picture_says_where_to_begin(host, python_models, kind):
    graph, source = left_half("left"), "left"
    if kind == "image":
        graph["picture"], source = node("MaskToImage", mask=["left", 0]), "picture"
    got = run_latent(host, {**graph, **draw(**SIDE, order_map=[source, 0])})
    bright = torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 4)
    want = python_models[INTERN].generate(
        "a photo of a cat", height=112, width=112, seed=1, cfg=3.0, flow=vgt.FlowSettings(steps=2), order_map=bright
    )
    torch.testing.assert_close(got, want.cpu(), **STRICT)


def test_one_of_several_beginnings_goes_on_as_if_never_stopped(host, models):
    """The host's own Latent From Batch chooses; the chosen one keeps its mask and its noise."""
    begun = draw(**SIDE, batch_size=3, stop_at=0.4, decoding="training-consistent")
    graph = {**begun, "choose": node("LatentFromBatch", samples=["draw", 0], batch_index=1, length=1)}
    graph = further(graph, ["choose", 0], batch_size=1)
    part, done = run_latent(host, graph, "draw", "further")
    left = (part == 0).all(dim=1)
    assert 9 <= int(left[1].sum()) <= 10 and left[0].equal(left[1])
    assert done[0][:, ~left[1]].equal(part[1][:, ~left[1]])
    whole = run_latent(host, draw(**SIDE, batch_size=3, decoding="training-consistent"))
    torch.testing.assert_close(done, whole[1:2], rtol=0, atol=1e-4)


def test_a_stopped_run_goes_on_bit_for_bit_and_leaves_no_mask(host, models):
    begun = further(draw(**SIDE, stop_at=0.4), ["draw", 0])
    done, whole = run_latent(host, begun, "further"), run_latent(host, draw(**SIDE))
    assert done.equal(whole)
    again = further(begun, ["further", 0], "again", denoise=1.0, seed=5)
    assert not run_latent(host, again, "again").equal(whole)  # all of it is drawn anew


def test_the_plan_is_a_picture(host, models):
    graph = draw(width=84, height=56)
    graph["draw_image"] = node("SaveImage", images=["draw", 1], filename_prefix="images/plan")
    pixels = decode_pixels(host, host.run(graph), "draw_image")
    assert pixels.shape == (96, 144, 3) and pixels.float().std() > 10


def test_a_latent_begun_with_another_model_is_repainted_and_the_node_says_so(host, models):
    graph = further(draw(**SIDE, stop_at=0.4), ["draw", 0])
    graph["other"] = node("VGTLoader", model="qwen2_5_vl.safetensors", dtype="fp32")
    graph["further"]["inputs"]["model"] = ["other", 0]
    part, done = run_latent(host, graph, "draw", "further")
    known = (part != 0).any(dim=1)
    assert done[0][:, known[0]].equal(part[0][:, known[0]])
    assert "the latent was begun with internvl3" in host.log()


def test_a_region_that_covers_nothing_changes_nothing_and_the_log_says_so(host, models):
    graph = {**mask("none", 0.0), **region("region", "a dog", "none")}
    torch.testing.assert_close(
        run_latent(host, {**graph, **draw(**SIDE, regions=["region", 0])}), run_latent(host, draw(**SIDE)), **STRICT
    )
    assert "the region 'a dog' covers no token of the picture" in host.log()


def test_changes_out_of_order_are_one_sentence(host, models):
    graph = {
        "first": node("VGTPromptSchedule", start=0.6, prompt="a", cfg=0.0, ramp="step"),
        "second": node("VGTPromptSchedule", start=0.5, prompt="b", cfg=0.0, ramp="step", schedule=["first", 0]),
        **draw(schedule=["second", 0]),
    }
    assert "put them in order" in str(fails(host, save_latent(graph)))


@pytest.mark.parametrize("name", ["regions", "schedule", "order_map"])
def test_a_value_instead_of_a_link_is_refused(host, models, name):
    with pytest.raises(HostError):
        host.run(save_latent(draw(**{name: "much"})))


def test_all_of_it_in_one_graph(host, models):
    graph = {**left_half("left"), **region("region", "a dog", "left", feather=1)}
    graph["later"] = node("VGTPromptSchedule", start=0.5, prompt="a boat", cfg=2.0, ramp="step")
    steering = {"regions": ["region", 0], "schedule": ["later", 0], "order_map": ["left", 0], "order": "spiral"}
    begun = draw(**SIDE, stop_at=0.5, tokens_per_step=4, **steering)
    whole = run_latent(host, {**graph, **draw(**SIDE, tokens_per_step=4, **steering)})
    assert run_latent(host, further({**graph, **begun}, ["draw", 0]), "further").equal(whole)
    assert host.run(
        save_image({**graph, **begun, "decode": node("VGTDecode", samples=["draw", 0], vae=["load", 1])}, "decode")
    )
