"""Bad input to the nodes in a real ComfyUI: one sentence that says what is wrong, and the next prompt runs."""

from __future__ import annotations

import re

import pytest
import torch

from graphs import (
    ANOTHER_MODEL,
    INTERN,
    NOT_A_CHECKPOINT,
    TOKENIZER_ONLY,
    TRUNCATED,
    draw,
    encoded,
    fails,
    load,
    node,
    repaint,
    run_latent,
    save_image,
    save_latent,
    upload_latent,
)
from host import PromptRejected, is_newer


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
        ({"width": 476}, False, r"size is 476x56.* at most 448x448"),
        ({"height": 1820}, False, r"size is 56x1820.* at most 448x448"),
        ({"width": -1}, True, "width"),
        ({"batch_size": 0}, True, "batch_size"),
        ({"tokens_per_step": -1}, True, "tokens_per_step"),
        ({"flow": {"steps": 0}}, True, "steps"),
        ({"flow": {"last_step": 1.0}}, True, "last_step"),
        ({"flow": {"steps": 3, "final_steps": 5}}, False, "final_steps is 5; it must lie between 1 and steps, 3"),
        ({"flow": {"final_steps": -1}}, True, "final_steps"),
        ({"flow": {"solver": "distilled"}}, False, "no distilled flow head"),
        ({"flow": {"preset": "fastest"}}, None, "preset"),
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
    if not is_newer():  # which looks for the file before it looks into its cache
        again = run_latent(host, draw(path.name, dtype="bf16", seed=6))
        assert not torch.equal(again, first)  # the loaded one serves on
    host.free()
    error = fails(host, save_latent(draw(path.name, dtype="bf16", seed=7)))
    assert "model" in str(error) and path.name in str(error)
    path.write_bytes(kept)
    assert torch.equal(run_latent(host, draw(path.name, dtype="bf16", seed=5)), first)
    path.unlink()
