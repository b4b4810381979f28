"""The nodes in a real, running ComfyUI: same numbers as vgt in Python, and a good neighbour to the host's own nodes."""

from __future__ import annotations

import io
import itertools
import os
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

import vgt
from graphs import (
    ALIKE,
    INTERN,
    QWEN,
    SLOW,
    STRICT,
    TOKENIZER_ONLY,
    copy_to_input,
    decode_pixels,
    draw,
    encoded,
    fails,
    install_models,
    latent_file,
    latent_of,
    load,
    node,
    pixels_of,
    repaint,
    run_latent,
    save_image,
    save_latent,
)
from host import Host, Interrupted, is_newer
from vgt.files.head_file import save_head
from vgt.files.reading import convert, read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.networks.distilled_head import DistilledHead
from vgt.sampling import PRESETS

# --- the same numbers as in Python -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [INTERN, QWEN])
@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "two dogs", "negative_prompt": "blurry", "tokens_per_step": 4, "width": 84, "height": 56},
        {"prompt": "", "cfg": 1.0, "order": "sequential", "decoding": "training-consistent"},
        {"grouping": "cosine", "tokens_per_step": 3, "width": 112, "seed": 2**64 - 1, "batch_size": 2},
    ],
    ids=["published", "training-consistent", "cosine"],
)
def test_graph_and_python_give_the_same_latent(host, python_models, name, settings):
    got = run_latent(host, draw(name, **settings))
    settings = {"height": 56, "width": 56, "seed": 1, "cfg": 3.0, **settings}
    prompt, negative = settings.pop("prompt", "a photo of a cat"), settings.pop("negative_prompt", None)
    prompts = [prompt] * settings.pop("batch_size", 1)
    torch.testing.assert_close(
        got, python_models[name].generate(prompts, negative, flow=vgt.FlowSettings(steps=2), **settings).cpu(), **STRICT
    )


def test_flow_head_settings_arrive(host, python_models):
    flow = {"steps": 3, "cfg_schedule": "constant", "last_step": 0.2, "solver": "euler", "temperature": 0.5}
    got = run_latent(host, draw(flow=flow))
    settings = vgt.FlowSettings(steps=3, last_step=0.2, solver="euler", temperature=0.5)
    want = python_models[INTERN].generate(
        "a photo of a cat", height=56, width=56, seed=1, cfg=3.0, cfg_schedule="constant", flow=settings
    )
    torch.testing.assert_close(got, want.cpu(), **STRICT)


def test_the_newer_flow_head_settings_arrive(host, python_models):
    flow = {"steps": 4, "solver": "exact", "shift": 2.0, "final_steps": 1, "cfg_end": 0.5}
    settings = vgt.FlowSettings(steps=4, solver="exact", shift=2.0, final_steps=1)
    want = python_models[INTERN].generate(
        "a photo of a cat", height=56, width=56, seed=1, cfg=3.0, cfg_end=0.5, flow=settings
    )
    torch.testing.assert_close(run_latent(host, draw(flow=flow)), want.cpu(), **STRICT)


def test_a_preset_holds_whatever_is_typed(host, python_models):
    """Without one, as in workflows from before there were any, the typed values hold: see the tests above."""
    preset = vars(PRESETS["fast"])
    own = {name: preset[name] for name in ("cfg_schedule", "cfg_end", "flow")}
    want = python_models[INTERN].generate("a photo of a cat", height=56, width=56, seed=1, cfg=3.0, **own)
    got = run_latent(host, draw(flow={"steps": 9, "temperature": 0.3, "preset": "fast"}))
    torch.testing.assert_close(got, want.cpu(), **STRICT)


def test_flow_head_unconnected_is_the_published_one(host, python_models):
    graph = draw(width=28, height=28)
    del graph["draw"]["inputs"]["flow_head"]
    want = python_models[INTERN].generate("a photo of a cat", height=28, width=28, seed=1, cfg=3.0)
    torch.testing.assert_close(run_latent(host, graph), want.cpu(), **STRICT)


def test_what_is_left_open_is_the_models_own(host, models):
    """Where width, height, cfg and tokens a step are 0, the file says how its maker would draw."""
    own = vgt.SamplingSettings(56, 84, cfg=2.0, tokens_per_step=2, flow=vgt.FlowSettings(steps=3))
    checkpoint = read_checkpoint(models / INTERN)
    checkpoint.recommended = own
    save_checkpoint(checkpoint, models / "recommends.safetensors")
    graph = draw("recommends.safetensors", width=0, height=0, cfg=0, tokens_per_step=0)
    del graph["draw"]["inputs"]["flow_head"]
    got = run_latent(host, graph)
    want = vgt.load(models / "recommends.safetensors").generate("a photo of a cat", seed=1)
    assert got.shape == (1, 32, 2, 3)
    torch.testing.assert_close(got, want, **STRICT)
    torch.testing.assert_close(run_latent(host, draw("recommends.safetensors")), run_latent(host, draw()), **STRICT)


def test_a_distilled_heads_file_is_loaded_like_a_model(host, models):
    """Its model lies in the same folder; on other weights it is refused, and without its model too."""
    convert(models / INTERN, models / "base-of-head.safetensors")
    base = read_checkpoint(models / "base-of-head.safetensors")
    sizes = base.config.generator
    torch.manual_seed(0)
    state = DistilledHead(sizes.flow_head, sizes.language.width).state_dict()
    own = vgt.SamplingSettings(flow=vgt.FlowSettings(2, solver="distilled"))
    save_head(state, sizes.flow_head, base, own, models / "head-alone.safetensors")
    graph = draw("head-alone.safetensors")
    del graph["draw"]["inputs"]["flow_head"]
    want = vgt.load(models / "head-alone.safetensors").generate(
        "a photo of a cat", height=56, width=56, seed=1, cfg=3.0
    )
    torch.testing.assert_close(run_latent(host, graph), want, **STRICT)

    name = "generator.image_out_projector.bias"
    other = replace(base, tensors=base.tensors | {name: base.tensors[name] + 1})
    absent = replace(base, path=models / "absent.safetensors")
    for stem, whose, said in (("another", other, "other weights than base-of-head"), ("absent", absent, "put absent")):
        save_head(state, sizes.flow_head, whose, own, models / f"head-of-{stem}.safetensors")
        error = fails(host, save_latent(draw(f"head-of-{stem}.safetensors")))
        assert f"head-of-{stem}.safetensors is a distilled flow head for " in str(error) and said in str(error)


def test_a_size_between_tokens_is_rounded_and_the_log_says_so(host):
    assert run_latent(host, draw(width=60, height=100)).shape == (1, 32, 4, 2)
    assert "VGT: drawing 56x112, the whole tokens nearest to 60x100." in host.log()


def test_the_picture_is_pythons(host, python_models):
    graph = {**draw(), "decode": node("VGTDecode", samples=["draw", 0], vae=["load", 1])}
    outputs = host.run(save_latent(save_image(graph, "decode")))
    want = (python_models[INTERN].decode(latent_of(host, outputs)).cpu()[0].clamp(-1, 1) + 1) * 127.5
    got = decode_pixels(host, outputs).movedim(-1, 0)
    assert (got - want).abs().max() <= 1


def test_seed_gives_the_same_image_in_any_batch(host, python_models):
    batch = run_latent(host, draw(batch_size=4))
    torch.testing.assert_close(run_latent(host, draw()), batch[:1], **ALIKE)
    empty = {"empty": node("EmptyLatentImage", width=56, height=56, batch_size=4)}
    for index in (1, 3):
        one = {**empty, "one": node("LatentFromBatch", samples=["empty", 0], batch_index=index, length=1)}
        got = run_latent(host, repaint({**one, **load()}, "one"))
        torch.testing.assert_close(got, batch[index : index + 1], **ALIKE)
        want = python_models[INTERN].generate(
            "a photo of a cat",
            height=56,
            width=56,
            seed=1,
            cfg=3.0,
            flow=vgt.FlowSettings(steps=2),
            batch_index=[index],
        )
        torch.testing.assert_close(got, want.cpu(), **STRICT)


def test_repeat_latent_batch_draws_the_images_of_a_batch(host, models):
    graph = {
        **load(),
        "empty": node("EmptyLatentImage", width=56, height=56, batch_size=1),
        "repeat": node("RepeatLatentBatch", samples=["empty", 0], amount=3),
    }
    got = run_latent(host, repaint(graph, "repeat"))
    torch.testing.assert_close(got, run_latent(host, draw(batch_size=3)), **ALIKE)
    first = {**graph, "one": node("LatentFromBatch", samples=["empty", 0], batch_index=0, length=1)}
    first["repeat"]["inputs"]["samples"] = ["one", 0]  # now batch_index is given, and Repeat Latent Batch counts it on
    torch.testing.assert_close(run_latent(host, repaint(first, "repeat")), got, **ALIKE)


@pytest.mark.parametrize(("width", "height", "tokens"), [(56, 112, (4, 2)), (64, 80, (3, 2)), (16, 16, (1, 1))])
def test_empty_latent_of_another_model_gives_size_and_batch(host, models, width, height, tokens):
    graph = {**load(), "empty": node("EmptyLatentImage", width=width, height=height, batch_size=2)}
    got = run_latent(host, repaint(graph, "empty", width=448, height=28, batch_size=5))
    assert got.shape == (2, 32, *tokens)


def test_dynamic_sizes_and_models_appear_without_a_restart(host, models):
    options = host.object_info("VGTLoader")["input"]["required"]["model"][1]["options"]
    assert {INTERN, QWEN, TOKENIZER_ONLY} <= set(options)
    assert options[0] == "vgt-tiny.safetensors"  # the disk first, then what would be downloaded, tokenizers last
    kinds = ["tokenizer" if name.startswith("VGT-AE") else "file" if "." in name[-12:] else "hub" for name in options]
    assert kinds == sorted(kinds, key=["file", "hub", "tokenizer"].index)


def test_what_has_a_default_may_be_left_out_and_what_few_use_is_folded(host, models):
    nodes = {name: info["input"] for name, info in host.object_info().items() if name.startswith("VGT")}
    assert len(nodes) == 9
    required = [(node, name) for node, kinds in nodes.items() for name in kinds.get("required", {}).items()]
    assert [(node, name) for node, (name, how) in required if "default" in (how[1] if how[1:] else {})] == []
    folded = {
        node: {name for name, how in kinds.get("optional", {}).items() if how[1:] and how[1].get("advanced")}
        for node, kinds in nodes.items()
    }
    folded = {node: names for node, names in folded.items() if names}
    newer = {
        "VGTLoader": {"compile"},
        "VGTARSampler": {"decoding", "grouping", "stop_at", "previews"},
        "VGTFlowHeadSettings": {"last_step", "temperature", "shift", "final_steps", "cfg_end"},
        "VGTTrainLoRA": {"accumulation", "alpha", "train", "gradient_checkpointing"},
    }
    assert folded == (newer if is_newer() else {})


# --- the VAE and the stock nodes ---------------------------------------------------------------------------------


def test_encode_is_pythons_and_the_stock_nodes_agree(host, python_models, photo):
    graph = encoded(photo)
    graph["stock"] = node("VAEEncode", pixels=["photo", 0], vae=["load", 1])
    graph["tiled"] = node(
        "VAEEncodeTiled",
        **{"pixels": ["photo", 0], "vae": ["load", 1], "tile_size": 512, "overlap": 64},
        **{"temporal_size": 64, "temporal_overlap": 8},
    )
    ours, stock, tiled = run_latent(host, graph, "encode", "stock", "tiled")
    torch.testing.assert_close(ours, python_models[INTERN].encode(photo[1]).cpu(), **STRICT)
    assert torch.equal(stock, ours)
    torch.testing.assert_close(tiled, ours, **ALIKE)  # one tile holds it all


@pytest.mark.parametrize(("fit", "tokens"), [("crop", (2, 3)), ("pad", (3, 4)), ("stretch", (3, 4))])
def test_encode_fits_any_size(host, models, tmp_path, fit, tokens):
    Image.new("RGBA", (100, 75), (200, 100, 50, 128)).save(tmp_path / f"{fit}.png")
    graph = {**load(), "photo": node("LoadImage", image=host.upload_image(tmp_path / f"{fit}.png"))}
    graph["encode"] = node("VGTEncode", image=["photo", 0], vae=["load", 1], fit=fit)
    assert run_latent(host, graph, "encode").shape == (1, 32, *tokens)


def test_tiled_decode_and_encode_are_close(host, models):
    """Tiles know less of their surroundings; a random decoder, whose attention is global, shows that most."""
    temporal = {"temporal_size": 64, "temporal_overlap": 8}
    tiles = {"vae": ["load", 1], "tile_size": 128, "overlap": 32, **temporal}
    graph = {
        **draw(width=252, height=168, tokens_per_step=27),
        "whole": node("VAEDecode", samples=["draw", 0], vae=["load", 1]),
        "ours": node("VGTDecode", samples=["draw", 0], vae=["load", 1]),
        "tiled": node("VAEDecodeTiled", samples=["draw", 0], **tiles),
        "encode": node("VAEEncode", pixels=["whole", 0], vae=["load", 1]),
        "encode_tiled": node("VAEEncodeTiled", pixels=["whole", 0], **tiles),
    }
    for name in ("whole", "ours", "tiled"):
        graph[f"image_{name}"] = node("SaveImage", images=[name, 0], filename_prefix="images/tiled")
    outputs = host.run(save_latent(graph, "encode", "encode_tiled"))
    whole, ours, tiled = (decode_pixels(host, outputs, f"image_{name}").float() for name in ("whole", "ours", "tiled"))
    assert torch.equal(whole, ours)
    assert tiled.shape == whole.shape == (168, 252, 3)
    assert (tiled - whole).abs().mean() < 0.4 * whole.std()
    assert torch.corrcoef(torch.stack((tiled.flatten(), whole.flatten())))[0, 1] > 0.8
    latent, latent_tiled = latent_of(host, outputs, "save0"), latent_of(host, outputs, "save1")
    assert latent.shape == latent_tiled.shape == (1, 32, 6, 9)
    assert torch.nn.functional.cosine_similarity(latent, latent_tiled, dim=1).min() > 0.99


def test_save_and_load_latent_round_trip(host, models):
    graph = save_latent(draw(width=84))
    outputs = host.run(graph)
    saved = latent_of(host, outputs)
    loaded = copy_to_input(host, latent_file(host, outputs), "round_trip")
    assert torch.equal(run_latent(host, loaded, "round_trip"), saved)


# --- progress, cancel, cache, memory -----------------------------------------------------------------------------


def bar(events, node_id="draw"):
    """(value, maximum) of a node's bar in each progress message, repetitions left out."""
    seen = []
    for data in events.of("progress_state"):
        state = data["nodes"].get(node_id)
        if state and state["state"] == "running" and (state["value"], state["max"]) not in seen:
            seen.append((state["value"], state["max"]))
    return seen


@pytest.mark.parametrize(("tokens_per_step", "values"), [(1, range(1, 9)), (4, (4, 8))])
def test_bar_counts_tokens(host, models, tokens_per_step, values):
    with host.events() as events:
        host.run(save_latent(draw(width=112, tokens_per_step=tokens_per_step, seed=time.time_ns() % 10**6)))
        events.wait_for("execution_success")
    counted = [entry for entry in bar(events) if entry[1] > 1]
    shown = [value for value, _ in counted if value]
    if is_newer():  # which leaves out what comes too fast to be seen
        assert shown[-1] == values[-1]
        assert shown == sorted(set(shown) & set(values))
    else:
        assert shown == list(values)
    assert {maximum for _, maximum in counted} == {8}


def test_cancel_takes_effect_within_one_token(host, models):
    slow = draw(width=112, height=112, flow={"steps": 1000})  # a token takes long beside a message's way
    with host.events() as events:
        prompt = host.queue(save_latent(slow))
        events.wait_for("progress_state", lambda data: data["nodes"].get("draw", {}).get("value", 0) >= 2)
        host.interrupt()
        at_interrupt = bar(events)[-1][0]
        with pytest.raises(Interrupted):
            host.wait(prompt)
        events.wait_for("execution_interrupted")
        assert bar(events)[-1][0] <= at_interrupt + 1
    assert at_interrupt < 16


def test_run_after_a_cancelled_one_is_not_touched_by_it(host, python_models):
    prompt = host.queue(save_latent(draw(width=112, height=112, flow={"steps": 1000}, seed=3)))
    with host.events() as events:
        events.wait_for("progress_state", lambda data: data["nodes"].get("draw", {}).get("value", 0) >= 1)
    host.interrupt()
    with pytest.raises(Interrupted):
        host.wait(prompt)
    got = run_latent(host, draw(seed=3))
    want = python_models[INTERN].generate(
        "a photo of a cat", height=56, width=56, seed=3, cfg=3.0, flow=vgt.FlowSettings(steps=2)
    )
    torch.testing.assert_close(got, want.cpu(), **STRICT)


def test_values_where_only_a_connection_makes_sense(host, models):
    for name in ("model", "latent", "flow_head"):
        graph = draw()
        graph["draw"]["inputs"][name] = "a value"
        assert name in str(fails(host, save_latent(graph)))
    graph = {**draw(), "decode": node("VGTDecode", samples=["draw", 0], vae="a value")}
    assert "VAE" in str(fails(host, save_image(graph, "decode")))


def test_second_run_loads_nothing(host, models):
    graph = {**draw(seed=11), "decode": node("VGTDecode", samples=["draw", 0], vae=["load", 1])}
    host.run(save_image(graph, "decode"))
    before = len(host.log())
    host.run(save_image({**graph, "draw": draw(seed=12)["draw"]}, "decode"))
    assert "Requested to load" not in host.log()[before:]


def test_two_samplers_with_two_models_twice(host, models):
    def both():
        host.free()
        second = {f"{name}2": part for name, part in draw(QWEN, seed=7).items()}
        second["draw2"]["inputs"] |= {"model": ["load2", 0], "flow_head": ["flow2", 0]}
        return run_latent(host, {**draw(seed=7), **second}, "draw", "draw2")

    first, again = both(), both()
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.allclose(first[0], first[1])


def resident_memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_free_gives_all_memory_back(host, models):
    """A model made heavy by a vocabulary that nobody uses."""
    checkpoint = read_checkpoint(models / INTERN)
    name = "generator.language_model.embed_tokens.weight"
    rows = 2**20
    language = checkpoint.config.generator.language
    heavy = torch.zeros(rows, language.width, dtype=torch.bfloat16)
    heavy[: language.vocabulary] = checkpoint.tensors[name]
    checkpoint.tensors[name] = heavy
    object.__setattr__(language, "vocabulary", rows)
    save_checkpoint(checkpoint, models / "heavy.safetensors")
    size = heavy.numel() * 4

    host.free()
    run_latent(host, draw(INTERN))
    host.free()
    time.sleep(2)
    before = resident_memory(host.process.pid)
    first = run_latent(host, draw("heavy.safetensors"))
    loaded = resident_memory(host.process.pid)
    assert loaded - before > 0.8 * size
    host.free()
    deadline = time.monotonic() + 20
    while resident_memory(host.process.pid) - before > 0.1 * size:
        assert time.monotonic() < deadline, "the model stayed in memory after /free"
        time.sleep(0.2)
    assert torch.equal(run_latent(host, draw("heavy.safetensors")), first)
    (models / "heavy.safetensors").unlink()
    host.free()


@pytest.mark.parametrize("dtype", ["auto", "bf16", "fp16", "fp8_e4m3fn"])
def test_dtypes(host, models, dtype):
    """Another precision is another picture of a random model; it must be finite, normalised and not the same bits."""
    graph = {**draw(dtype=dtype), "decode": node("VGTDecode", samples=["draw", 0], vae=["load", 1])}
    outputs = host.run(save_image(save_latent(graph), "decode"))
    latent = latent_of(host, outputs)
    assert torch.isfinite(latent).all() and latent.dtype == torch.float32
    assert latent.mean(1).abs().max() < 1e-3 and (latent.std(1, correction=0) - 1).abs().max() < 1e-2
    exact = run_latent(host, draw())
    if dtype == "auto" and not torch.cuda.is_available():
        assert torch.equal(latent, exact)
    else:
        assert not torch.equal(latent, exact)
    similarity = torch.nn.functional.cosine_similarity(latent, exact, dim=1).min()
    assert similarity > (0.9 if dtype == "fp8_e4m3fn" else 0.99)
    assert decode_pixels(host, outputs).shape == (56, 56, 3)


# --- previews ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def previewing_host(tmp_path_factory):
    with Host(tmp_path_factory.mktemp("previews"), ["--preview-method", "auto"]) as running:
        install_models(running)
        yield running


@pytest.mark.parametrize("previews", [True, False])
def test_previews_are_shown_unless_the_sampler_says_no(host, models, previews):
    with host.events() as events:
        host.run(save_latent(draw(**SLOW, seed=21, previews=previews)))
        events.wait_for("execution_success")
    assert bool(events.of("preview")) == previews


def test_previews_show_the_picture_at_most_twice_a_second(previewing_host):
    graph = save_latent(draw(width=196, height=112, flow={"steps": 200}))
    with previewing_host.events() as events:
        started = time.monotonic()
        previewing_host.run(graph)
        took = time.monotonic() - started
        events.wait_for("execution_success")
    previews = [event for event in events.events if event.type == "preview"]
    assert 1 <= len(previews) <= 2 * took
    gaps = [late.time - early.time for early, late in itertools.pairwise(previews)]
    assert all(gap > 0.4 for gap in gaps)
    for event in previews:
        picture = Image.open(io.BytesIO(event.data["image"]))
        assert picture.size == (196, 112) and picture.format == "JPEG"
        assert event.data["node_id"] == "draw"
    neutral = [(pixels_of(event.data["image"]).int() - 128).abs().amax(-1) < 3 for event in previews]
    shares = [float(places.float().mean()) for places in neutral]
    assert shares[0] > shares[-1] or len(shares) == 1
