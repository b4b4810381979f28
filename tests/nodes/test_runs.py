"""A run as the host and its user see it: the bar, Cancel, caching, memory, dtypes, previews."""

from __future__ import annotations

import io
import os
import time

import pytest
import torch
from PIL import Image

import vgt
from graphs import (
    INTERN,
    QWEN,
    SLOW,
    STRICT,
    decode_pixels,
    draw,
    fails,
    latent_of,
    node,
    pixels_of,
    run_latent,
    save_image,
    save_latent,
)
from host import Interrupted, is_newer
from vgt.files.reading import read_checkpoint
from vgt.files.single_file import save_checkpoint


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
    with host.events() as events:
        prompt = host.queue(save_latent(draw(width=112, height=112, flow={"steps": 1000}, seed=3)))
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
    deadline = time.monotonic() + 120
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


@pytest.mark.parametrize("previews", [True, False])
def test_previews_are_shown_unless_the_sampler_says_no(host, models, previews):
    with host.events() as events:
        host.run(save_latent(draw(**SLOW, seed=21, previews=previews)))
        events.wait_for("execution_success")
    assert bool(events.of("preview")) == previews


def test_previews_show_the_picture_at_most_twice_a_second(host, models):
    graph = save_latent(draw(width=196, height=112, flow={"steps": 200}))
    with host.events() as events:
        started = time.monotonic()
        host.run(graph)
        took = time.monotonic() - started
        events.wait_for("execution_success")
    previews = [event for event in events.events if event.type == "preview"]
    assert 1 <= len(previews) <= 1 + 2 * took
    for event in previews:
        picture = Image.open(io.BytesIO(event.data["image"]))
        assert picture.size == (196, 112) and picture.format == "JPEG"
        assert event.data["node_id"] == "draw"
    neutral = [(pixels_of(event.data["image"]).int() - 128).abs().amax(-1) < 3 for event in previews]
    shares = [float(places.float().mean()) for places in neutral]
    assert shares[0] > shares[-1] or len(shares) == 1
