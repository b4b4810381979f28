"""What VGT AR Sampler tells a person under the node and in the log."""

import shutil

import pytest

from bundled import PATH, SIDE
from graphs import FLOW, draw, encoded, load, node, repaint, run_latent, save_latent

BUNDLED = "bundled.safetensors"


@pytest.fixture(scope="module")
def bundled_model(host, models):
    shutil.copy(PATH, models / BUNDLED)
    return BUNDLED


def texts(host, graph, node_id="draw"):
    """What stood under a node in a run, one text after the other."""
    with host.events() as events:
        host.wait(host.queue(graph))
        return [data["text"] for data in events.of("progress_text") if data["node_id"] == node_id]


def plain(model, **sampler):
    """Loader and sampler with what has no default."""
    sampler = {"model": ["load", 0], "prompt": "a red circle", "seed": 3} | sampler
    return save_latent({"load": node("VGTLoader", model=model), "draw": node("VGTARSampler", **sampler)})


def test_words_never_seen_are_named_under_the_node_and_in_the_log(host, bundled_model):
    assert texts(host, plain(bundled_model, prompt="A gryphon ABOVE a blue square")) == ["never seen: gryphon"]
    assert "VGT: never seen: gryphon" in host.log()
    # The next run has nothing to say, and takes away what stands there.
    assert texts(host, plain(bundled_model, prompt="A RED circle above a blue square")) == [" "]
    assert texts(host, plain(bundled_model, prompt="a red circle on white")) == []


def test_a_model_that_names_no_words_says_nothing(host, models):
    assert texts(host, save_latent(draw(prompt="a gryphon", flow={"steps": 20}))) == []


def test_prompts_may_leave_out_what_has_a_default(host, bundled_model):
    """Only model and prompt are asked for; the rest is as typed in full."""
    full = {"width": 0, "height": 0, "batch_size": 1, "cfg": 0.0, "tokens_per_step": 0, "order": "random"}
    full |= {"decoding": "published", "grouping": "uniform", "denoise": 1.0, "negative_prompt": "", "previews": True}
    loaded = load(bundled_model, "fp32")
    short = {**loaded, "draw": node("VGTARSampler", model=["load", 0], prompt="a red star", seed=5)}
    long = {
        **loaded,
        "draw": node("VGTARSampler", model=["load", 0], prompt="a red star", seed=5, **full),
    }
    one, other = run_latent(host, short), run_latent(host, long)
    assert one.shape == (1, 32, SIDE // 28, SIDE // 28)
    assert (one == other).all()


@pytest.mark.parametrize(
    "sampler, flow, said",
    [
        ({"cfg": 20.0}, {"steps": 20}, "cfg 20 is above all that was tried (1 to 8)"),
        ({}, {"steps": 5}, "5 steps are few for euler_maruyama: below 15 many pictures fail"),
        ({}, {"steps": 2, "solver": "euler"}, "2 steps are few for euler: below 3 many pictures fail"),
    ],
)
def test_values_that_mean_trouble_are_named(host, models, sampler, flow, said):
    assert texts(host, save_latent(draw(flow=flow, **sampler))) == [said]


@pytest.mark.parametrize(
    "values, said",
    [
        ({"denoise": 0.0}, "nothing was drawn: denoise is 0"),
        ({"denoise": 0.02}, "nothing was drawn: the mask and denoise leave no token"),
        ({"width": 224, "height": 0, "denoise": 0.5}, "the latent's 112x84, 1 at once, holds; not width 224"),
        ({"batch_size": 3, "denoise": 0.5}, "the latent's 112x84, 1 at once, holds; not batch_size 3"),
    ],
)
def test_what_a_latent_overrides_and_what_is_not_drawn_is_named(host, photo, values, said):
    values = {"width": 0, "height": 0, **values}
    graph = repaint(encoded(photo), "encode", flow={**FLOW, "steps": 20}, **values)
    assert texts(host, save_latent(graph)) == [said]


def test_an_empty_mask_is_named(host, photo):
    graph = encoded(photo)
    graph["none"] = node("SolidMask", value=0.0, width=112, height=84)
    graph["masked"] = node("SetLatentNoiseMask", samples=["encode", 0], mask=["none", 0])
    graph = repaint(graph, "masked", flow={"steps": 20}, width=0, height=0)
    assert texts(host, save_latent(graph)) == ["nothing was drawn: the mask covers no token"]
