"""VGT's VAE in a real, running ComfyUI: VGT Encode and Decode, the host's own VAE and latent nodes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from graphs import (
    ALIKE,
    INTERN,
    STRICT,
    copy_to_input,
    decode_pixels,
    draw,
    encoded,
    latent_file,
    latent_of,
    load,
    node,
    run_latent,
    save_latent,
)


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
