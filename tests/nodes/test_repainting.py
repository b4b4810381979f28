"""Repainting in a real ComfyUI: masks, denoise, and the host's own inpainting nodes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import vgt
from graphs import (
    ALIKE,
    INTERN,
    QWEN,
    STRICT,
    draw,
    encoded,
    node,
    repaint,
    run_latent,
)


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
