"""A VLM without a family file in a real ComfyUI, whose own transformers library serves it."""

import pytest
import torch
from PIL import Image

import vgt
import vlms
from graphs import STRICT, decode_pixels, draw, install_models, load, node, run_latent, save_image
from vgt.files.single_file import save_checkpoint
from vgt.training.base_model import load_base


@pytest.fixture(scope="module", params=["smolvlm", "gemma3"])
def model(host, request, tmp_path_factory):
    """A file's name in the Loader's list, and the same model in Python."""
    folder = tmp_path_factory.mktemp(request.param)
    vlms.save_base(request.param, folder / "base")
    path = install_models(host) / f"vlm-{request.param}.safetensors"
    save_checkpoint(vlms.checkpoint_of(load_base(folder / "base")), path)
    return path.name, vgt.load(path)


def test_pictures_are_drawn_as_in_python(host, model):
    name, python = model
    side = python.config.token_pixels
    graph = draw(name, width=3 * side, height=2 * side, tokens_per_step=2)
    graph["decode"] = node("VGTDecode", samples=["draw", 0], vae=["load", 1])
    outputs = host.run(save_image(graph, "decode"))
    assert decode_pixels(host, outputs).shape == (2 * side, 3 * side, 3)
    settings = {"height": 2 * side, "width": 3 * side, "seed": 1, "cfg": 3.0, "tokens_per_step": 2}
    want = python.generate("a photo of a cat", flow=vgt.FlowSettings(steps=2), **settings)
    torch.testing.assert_close(run_latent(host, graph), want.cpu(), **STRICT)


@pytest.mark.parametrize("encoder", ["VAEEncode", "VAEEncodeTiled"])
def test_images_are_encoded_to_the_towers_grid(host, model, tmp_path, encoder):
    name, python = model
    Image.new("RGB", (160, 112), (200, 100, 50)).save(tmp_path / "photo.png")
    graph = {**load(name), "photo": node("LoadImage", image=host.upload_image(tmp_path / "photo.png"))}
    tiles = {"tile_size": 64, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    options = tiles if encoder == "VAEEncodeTiled" else {}
    graph["encode"] = node(encoder, pixels=["photo", 0], vae=["load", 1], **options)
    grid = (4, 4) if python.config.autoencoder.only_side else (7, 10)
    assert run_latent(host, graph, "encode").shape == (1, 32, *grid)


@pytest.mark.parametrize("dtype", ["bf16", "fp8_e4m3fn"])
def test_other_dtypes_draw_too(host, model, dtype):
    name, python = model
    side = python.config.token_pixels
    graph = draw(name, width=2 * side, height=2 * side)
    graph["load"]["inputs"]["dtype"] = dtype
    latent = run_latent(host, graph)
    assert latent.shape == (1, 32, 2, 2)
    assert torch.isfinite(latent).all()
