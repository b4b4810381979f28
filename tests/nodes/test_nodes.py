"""The nodes in a real, running ComfyUI: the same numbers as vgt in Python, whatever is typed or left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import bundled
import vgt
from graphs import (
    ALIKE,
    INTERN,
    QWEN,
    STRICT,
    TOKENIZER_ONLY,
    decode_pixels,
    draw,
    fails,
    latent_of,
    load,
    node,
    repaint,
    run_latent,
    save_image,
    save_latent,
)
from host import is_newer
from vgt.files.head_file import save_head
from vgt.files.reading import convert, read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.networks.distilled_head import DistilledHead
from vgt.sampling import PRESETS


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


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_holds_whatever_is_typed(host, python_models, name):
    """Without one, as in workflows from before there were any, the typed values hold: see the tests above."""
    own = {key: vars(PRESETS[name])[key] for key in ("cfg_schedule", "cfg_end", "flow")}
    want = python_models[INTERN].generate("a photo of a cat", height=56, width=56, seed=1, cfg=3.0, **own)
    typed = {"steps": 7, "cfg_schedule": "constant", "last_step": 0.3, "solver": "exact", "temperature": 0.3}
    typed |= {"shift": 2.0, "final_steps": 5, "cfg_end": 0.75}
    got = run_latent(host, draw(flow={**typed, "preset": name}))
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
    assert options[0] == bundled.NAME  # the disk first, then what would be downloaded, tokenizers last
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
