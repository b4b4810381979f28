"""The nodes in a real, running ComfyUI: same numbers as vgt in Python, and a good neighbour to the host's own nodes."""

from __future__ import annotations

import io
import itertools
import os
import re
import time

import pytest
import torch
from PIL import Image

import vgt
from graphs import (
    ANOTHER_MODEL,
    INTERN,
    NOT_A_CHECKPOINT,
    QWEN,
    TOKENIZER_ONLY,
    TRUNCATED,
    copy_to_input,
    draw,
    install_models,
    latent_file,
    latent_of,
    load,
    node,
    run_latent,
    save_image,
    save_latent,
    upload_latent,
)
from host import Host, HostError, Interrupted, PromptRejected
from vgt.checkpoint import read_checkpoint, save_checkpoint

STRICT = {"rtol": 0, "atol": 1e-4 if torch.cuda.is_available() else 1e-5}
ALIKE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def models(host):
    return install_models(host)


@pytest.fixture(scope="module")
def python_models(models):
    return {name: vgt.load(models / name) for name in (INTERN, QWEN)}


@pytest.fixture(scope="module")
def photo(host, models):
    """Name of an image of 112x84 random pixels in the host's input folder, and its pixels [1, 3, 84, 112]."""
    pixels = torch.randint(0, 256, (84, 112, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = models / "photo.png"
    Image.fromarray(pixels.numpy()).save(path)
    name = host.upload_image(path)
    path.unlink()
    return name, pixels.movedim(-1, 0)[None].float() / 255


def encoded(photo, model=INTERN):
    """Loader, photo and VGT Encode: a VGT latent of 3x4 tokens at ["encode", 0]."""
    return {
        **load(model),
        "photo": node("LoadImage", image=photo[0]),
        "encode": node("VGTEncode", image=["photo", 0], vae=["load", 1], fit="crop"),
    }


def repaint(graph, latent, flow=None, **sampler):
    """The graph with a sampler on that latent."""
    drawn = draw(flow=flow, latent=[latent, 0], **sampler)
    return {**graph, "flow": drawn["flow"], "draw": drawn["draw"]}


def fails(host, graph):
    """Run a graph that must fail in a node: the error. It is one sentence, and the next prompt runs."""
    with pytest.raises(HostError) as caught:
        host.run(graph)
    error = caught.value
    assert not isinstance(error, Interrupted)
    if not isinstance(error, PromptRejected):
        assert "\n" not in str(error) and str(error).endswith("."), str(error)
        assert error.exception_type.rpartition(".")[2] in ("ValueError", "FileNotFoundError", "CheckpointError")
    return error


def decode_pixels(host, outputs, node_id="image"):
    """[H, W, 3] of a saved picture."""
    picture = Image.open(io.BytesIO(host.view(**outputs[node_id]["images"][0]))).convert("RGB")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)


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


def test_flow_head_unconnected_is_the_published_one(host, python_models):
    graph = draw(width=28, height=28)
    del graph["draw"]["inputs"]["flow_head"]
    want = python_models[INTERN].generate("a photo of a cat", height=28, width=28, seed=1, cfg=3.0)
    torch.testing.assert_close(run_latent(host, graph), want.cpu(), **STRICT)


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
    assert [value for value, _ in counted if value] == list(values)
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


# --- repainting --------------------------------------------------------------------------------------------------


def masked(graph, latent, name="masked", width=112, height=84, x=0, y=0, w=None, h=None):
    """A rectangle of ones on a mask of zeros, set on a latent with Set Latent Noise Mask."""
    graph = dict(graph)
    graph["zeros"] = node("SolidMask", value=0.0, width=width, height=height)
    graph["ones"] = node("SolidMask", value=1.0, width=w or width, height=h or height)
    graph["mask"] = node("MaskComposite", destination=["zeros", 0], source=["ones", 0], x=x, y=y, operation="add")
    graph[name] = node("SetLatentNoiseMask", samples=[latent, 0], mask=["mask", 0])
    return graph


def changed(before, after):
    """bool [B, h, w]: tokens that are not the same bits."""
    return (before != after).any(dim=1)


@pytest.mark.parametrize(
    ("rectangle", "expected"),
    [
        ({"x": 28, "y": 28, "w": 28, "h": 28}, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]),
        ({"x": 27, "y": 50, "w": 2, "h": 34}, [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]),
        ({"width": 4, "height": 3, "x": 2, "y": 0, "w": 1, "h": 2}, [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]),
        ({"width": 224, "height": 168, "x": 0, "y": 0, "w": 57, "h": 1}, [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
    ids=["one cell", "touched cells", "mask of 4x3", "mask of twice the size"],
)
@pytest.mark.parametrize("name", [INTERN, QWEN])
def test_only_masked_tokens_are_drawn(host, models, photo, name, rectangle, expected):
    graph = repaint(masked(encoded(photo, name), "encode", **rectangle), "masked", model=name, tokens_per_step=2)
    before, after = run_latent(host, graph, "encode", "draw")
    assert torch.equal(changed(before, after)[0], torch.tensor(expected).bool())


def test_repaint_is_pythons(host, python_models, photo):
    graph = repaint(masked(encoded(photo), "encode", x=28, y=0, w=56, h=56), "masked", cfg=4.5)
    before, after = run_latent(host, graph, "encode", "draw")
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:2, 1:3] = True
    want = python_models[INTERN].generate(
        "a photo of a cat",
        height=84,
        width=112,
        seed=1,
        latent=before,
        mask=mask,
        flow=vgt.FlowSettings(steps=2),
    )
    torch.testing.assert_close(after, want.cpu(), **STRICT)


def test_mask_of_nothing_gives_the_latent_back(host, models, photo):
    graph = masked(encoded(photo), "encode")
    graph["ones"]["inputs"]["value"] = 0.0
    before, after = run_latent(host, repaint(graph, "masked"), "encode", "draw")
    assert torch.equal(before, after)
    assert "the mask covers no token" in host.log()


def test_mask_of_everything_is_plain_generation(host, models, photo):
    graph = repaint(masked(encoded(photo), "encode"), "masked")
    torch.testing.assert_close(run_latent(host, graph), run_latent(host, draw(width=112, height=84)), **STRICT)


@pytest.mark.parametrize("denoise", [0.0, 0.25, 0.5])
def test_denoise_is_the_share_drawn_anew(host, models, photo, denoise):
    before, after = run_latent(host, repaint(encoded(photo), "encode", denoise=denoise), "encode", "draw")
    assert changed(before, after).sum() == denoise * 12


def test_denoise_within_a_mask(host, models, photo):
    graph = masked(encoded(photo), "encode", w=56, h=56)
    before, after = run_latent(host, repaint(graph, "masked", denoise=0.5), "encode", "draw")
    where = changed(before, after)[0]
    assert where.sum() == 2 and where[:2, :2].sum() == 2


def test_every_image_of_a_batch_has_its_own_mask(host, models, photo):
    graph = encoded(photo)
    for index, x in enumerate((0, 56)):
        graph = masked(graph, "encode", name=f"masked{index}", x=x, y=0, w=28, h=28)
        graph[f"mask{index}"] = graph.pop("mask")
        graph[f"mask{index}"]["inputs"]["x"] = x
        graph[f"picture{index}"] = node("MaskToImage", mask=[f"mask{index}", 0])
        graph[f"masked{index}"]["inputs"]["mask"] = [f"mask{index}", 0]
    graph["pictures"] = node("ImageBatch", image1=["picture0", 0], image2=["picture1", 0])
    graph["masks"] = node("ImageToMask", image=["pictures", 0], channel="red")
    graph["repeat"] = node("RepeatLatentBatch", samples=["encode", 0], amount=2)
    graph["masked"] = node("SetLatentNoiseMask", samples=["repeat", 0], mask=["masks", 0])
    before, after = run_latent(host, repaint(graph, "masked"), "repeat", "draw")
    assert changed(before, after).nonzero().tolist() == [[0, 0, 0], [1, 0, 2]]
    # and image 1 is what it is alone
    alone = {**graph, "one": node("LatentFromBatch", samples=["masked", 0], batch_index=1, length=1)}
    torch.testing.assert_close(run_latent(host, repaint(alone, "one")), after[1:], **ALIKE)


def test_vae_encode_for_inpainting(host, models, photo):
    graph = masked(encoded(photo), "encode", x=28, y=28, w=28, h=28)
    graph["inpaint"] = node(
        "VAEEncodeForInpaint", pixels=["photo", 0], vae=["load", 1], mask=["mask", 0], grow_mask_by=0
    )
    before, after = run_latent(host, repaint(graph, "inpaint"), "inpaint", "draw")
    assert changed(before, after).nonzero().tolist() == [[0, 1, 1]]


def test_pad_image_for_outpainting(host, models, photo):
    graph = encoded(photo)
    graph["pad"] = node("ImagePadForOutpaint", image=["photo", 0], left=56, top=0, right=0, bottom=28, feathering=0)
    # 56 and 28 are no multiples of 8, which is the interface's step only
    graph["encode"]["inputs"]["image"] = ["pad", 0]
    graph["masked"] = node("SetLatentNoiseMask", samples=["encode", 0], mask=["pad", 1])
    before, after = run_latent(host, repaint(graph, "masked", tokens_per_step=4), "encode", "draw")
    expected = torch.ones(4, 6, dtype=torch.bool)
    expected[:3, 2:] = False
    assert torch.equal(changed(before, after)[0], expected)


def test_mask_follows_the_crop_of_the_image(host, models, tmp_path):
    """An image of 80x70 loses 12 columns on each side and 7 rows: its mask must lose them too."""
    Image.effect_noise((80, 70), 90).save(tmp_path / "odd.png")
    graph = encoded((host.upload_image(tmp_path / "odd.png"),))
    graph = masked(graph, "encode", width=80, height=70, x=38, y=0, w=2, h=7)  # just left of the middle, cut off above
    before, after = run_latent(host, repaint(graph, "masked"), "encode", "draw")
    assert not changed(before, after).any()
    graph = masked(graph, "encode", width=80, height=70, x=38, y=7, w=2, h=1)
    before, after = run_latent(host, repaint(graph, "masked"), "encode", "draw")
    assert changed(before, after).nonzero().tolist() == [[0, 0, 0]]


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NOT_A_CHECKPOINT, TRUNCATED, ANOTHER_MODEL])
def test_bad_model_file(host, models, name):
    error = fails(host, save_latent(draw(name)))
    assert name in str(error) and error.node_type == "VGTLoader"


def test_absent_model_is_rejected(host, models):
    error = fails(host, save_latent(draw("absent.safetensors")))
    assert "model" in str(error) and "absent.safetensors" in str(error)


def test_tokenizer_only_model_cannot_draw(host, models, photo):
    error = fails(host, save_latent(draw(TOKENIZER_ONLY)))
    assert "tokenizer only" in str(error) and TOKENIZER_ONLY in str(error)
    assert run_latent(host, encoded(photo, TOKENIZER_ONLY), "encode").shape == (1, 32, 3, 4)


@pytest.mark.parametrize(
    ("settings", "rejected", "says"),
    [
        ({"width": 57}, False, r"size is 57x56.* multiples of 28"),
        ({"width": 476}, False, r"size is 476x56.* at most 448x448"),
        ({"height": 1820}, True, "height"),
        ({"width": 0}, True, "width"),
        ({"batch_size": 0}, True, "batch_size"),
        ({"tokens_per_step": 0}, True, "tokens_per_step"),
        ({"flow": {"steps": 0}}, True, "steps"),
        ({"flow": {"last_step": 1.0}}, True, "last_step"),
        ({"cfg": "much"}, True, "cfg"),
        ({"order": "backwards"}, None, "order"),
        ({"seed": -1}, True, "seed"),
        ({"prompt": "cat " * 6000}, False, r"prompt is \d+ tokens long"),
        ({"negative_prompt": "cat " * 6000}, False, r"negative prompt is \d+ tokens long"),
        ({"prompt": "cat " * 2030, "width": 448, "height": 448}, False, "shorten the prompt or draw a smaller image"),
    ],
    ids=lambda value: "-".join(value)[:20] if isinstance(value, dict) else "",
)
def test_bad_setting(host, models, settings, rejected, says):
    error = fails(host, save_latent(draw(**settings)))
    assert rejected in (None, isinstance(error, PromptRejected))
    assert re.search(says, str(error)), str(error)
    assert run_latent(host, draw()).shape == (1, 32, 2, 2)


@pytest.mark.parametrize("prompt", ["", "  \n", "<|im_end|><img>", "\ud800 half a pair", "猫\0🐈" * 10])
def test_any_text_is_a_prompt(host, models, prompt):
    assert torch.isfinite(run_latent(host, draw(prompt=prompt, negative_prompt=prompt))).all()


LATENTS = {
    "four_channels": (torch.ones(1, 4, 8, 8), r"latent is \[1, 4, 8, 8\].*another model"),
    "video": (torch.ones(1, 16, 2, 8, 8), r"latent is \[1, 16, 2, 8, 8\].*another model"),
    "nan": (torch.full((1, 32, 2, 2), float("nan")), "latent holds NaN"),
    "infinite": (torch.full((1, 32, 2, 2), float("inf")), "latent holds NaN"),
}


@pytest.mark.parametrize("kind", LATENTS)
@pytest.mark.parametrize("where", ["VGTARSampler", "VGTDecode", "VAEDecode", "VAEDecodeTiled"])
def test_bad_latent(host, models, kind, where):
    samples, says = LATENTS[kind]
    graph = {**upload_latent(host, samples, kind), **load()}
    if where == "VGTARSampler":
        graph = save_latent(repaint(graph, kind))
    else:
        tiles = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
        graph["decode"] = node(where, samples=[kind, 0], vae=["load", 1], **(tiles if where.endswith("Tiled") else {}))
        graph = save_image(graph, "decode")
    error = fails(host, graph)
    assert re.search(says, str(error)), str(error)
    assert error.node_type == where


def test_empty_video_latent(host, models):
    graph = {**upload_latent(host, torch.zeros(1, 16, 2, 8, 8), "empty_video"), **load()}
    assert "still images" in str(fails(host, save_latent(repaint(graph, "empty_video"))))


@pytest.mark.parametrize("where", ["VGTEncode", "VAEEncode"])
def test_image_smaller_than_a_token(host, models, where):
    graph = {**load(), "picture": node("EmptyImage", width=20, height=40, batch_size=1, color=0)}
    inputs = {"image": ["picture", 0], "fit": "crop"} if where == "VGTEncode" else {"pixels": ["picture", 0]}
    graph["encode"] = node(where, vae=["load", 1], **inputs)
    error = fails(host, save_latent(graph, "encode"))
    assert re.search(r"image is 20x40.*at least 28x28", str(error)), str(error)


def test_model_file_deleted_while_loaded(host, models):
    path = models / "deleted.safetensors"
    path.write_bytes((models / INTERN).read_bytes())
    first = run_latent(host, draw(path.name, dtype="bf16", seed=5))
    kept = path.read_bytes()
    path.unlink()
    assert not torch.equal(run_latent(host, draw(path.name, dtype="bf16", seed=6)), first)  # the loaded one serves on
    host.free()
    error = fails(host, save_latent(draw(path.name, dtype="bf16", seed=7)))
    assert "model" in str(error) and path.name in str(error)
    path.write_bytes(kept)
    assert torch.equal(run_latent(host, draw(path.name, dtype="bf16", seed=5)), first)
    path.unlink()


# --- previews ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def previewing_host(tmp_path_factory):
    with Host(tmp_path_factory.mktemp("previews"), ["--preview-method", "auto"]) as running:
        install_models(running)
        yield running


def test_no_previews_by_default(host, models):
    with host.events() as events:
        host.run(save_latent(draw(width=112, height=112, flow={"steps": 100}, seed=21)))
        events.wait_for("execution_success")
    assert not events.of("preview")


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
    neutral = [(torch.tensor(list(Image.open(io.BytesIO(event.data["image"])).getdata())) - 128).abs().amax(1) < 3
            for event in previews]  # fmt: skip
    shares = [float(pixels.float().mean()) for pixels in neutral]
    assert shares[0] > shares[-1] or len(shares) == 1
    print("previews", len(previews), "took", took, "neutral", shares)
