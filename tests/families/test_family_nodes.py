"""Every family in a real ComfyUI: its nodes give Python's numbers, and take any size in whole tokens of its own."""

import pytest
import torch
from PIL import Image

import vgt
from family_models import checkpoint_of
from graphs import STRICT, decode_pixels, draw, fails, install_models, load, node, run_latent, save_image, save_latent
from vgt.families import families, family
from vgt.files.single_file import save_checkpoint

NAMES = [found.name for found in families() if not found.fallback]


@pytest.fixture(scope="module", params=NAMES)
def model(host, request):
    """A file's name in the Loader's list, and the same model in Python."""
    path = install_models(host) / f"family-{request.param}.safetensors"
    save_checkpoint(checkpoint_of(family(request.param)), path)
    return path.name, vgt.load(path)


def test_pictures_are_drawn_as_in_python(host, model):
    name, python = model
    side = python.config.token_pixels
    graph = draw(name, width=3 * side + 3, height=2 * side - 3, tokens_per_step=2)  # rounded to whole tokens
    graph["decode"] = node("VGTDecode", samples=["draw", 0], vae=["load", 1])
    outputs = host.run(save_image(graph, "decode"))
    assert decode_pixels(host, outputs).shape == (2 * side, 3 * side, 3)
    settings = {"height": 2 * side, "width": 3 * side, "seed": 1, "cfg": 3.0, "tokens_per_step": 2}
    want = python.generate("a photo of a cat", flow=vgt.FlowSettings(steps=2), **settings)
    torch.testing.assert_close(run_latent(host, graph), want.cpu(), **STRICT)


def test_a_picture_is_repainted_up_to_the_grids_own_sides(host, model, tmp_path):
    name, python = model
    rows, columns = (tokens * python.config.token_pixels for tokens in python.config.generator.grid)

    def repainted(width, height):
        Image.new("RGB", (width, height), (200, 100, 50)).save(tmp_path / "photo.png")
        graph = draw(name, width=0, height=0, latent=["encode", 0])
        graph["photo"] = node("LoadImage", image=host.upload_image(tmp_path / "photo.png"))
        graph["encode"] = node("VGTEncode", image=["photo", 0], vae=["load", 1], fit="crop")
        return graph

    side = python.config.token_pixels
    assert run_latent(host, repainted(columns, rows)).shape[2:] == python.config.generator.grid
    error = fails(host, save_latent(repainted(columns, rows + side)))
    assert f"this model draws at most {columns}x{rows}, so choose fit 'model size'" in str(error)


@pytest.mark.parametrize(("dtype", "close"), [("bf16", 0.99), ("fp8_e4m3fn", 0.8)])
def test_coarser_numbers_draw_about_the_same(host, model, dtype, close):
    name, python = model
    side = python.config.token_pixels
    settings = {"width": 2 * side, "height": side, "cfg": 1.0, "order": "sequential"}
    got, want = (run_latent(host, draw(name, kind, **settings)) for kind in (dtype, "fp32"))
    assert torch.nn.functional.cosine_similarity(got[..., 0], want[..., 0], dim=1).min() > close  # the first token


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_of_any_size_are_encoded(host, model, tmp_path, fit):
    name, python = model
    Image.new("RGB", (140, 110), (200, 100, 50)).save(tmp_path / f"{fit}.png")
    side = python.config.token_pixels
    tokens = {"crop": (110 // side, 140 // side), "pad": (-(-110 // side), -(-140 // side))}
    tokens["stretch"] = (round(110 / side), round(140 / side))
    graph = {**load(name), "photo": node("LoadImage", image=host.upload_image(tmp_path / f"{fit}.png"))}
    graph["encode"] = node("VGTEncode", image=["photo", 0], vae=["load", 1], fit=fit)
    assert run_latent(host, graph, "encode").shape == (1, 32, *tokens[fit])


def test_the_hosts_tiles_are_whole_tokens(host, model):
    name, python = model
    side = python.config.token_pixels
    tiles = {"vae": ["load", 1], "tile_size": 100, "overlap": 32, "temporal_size": 64, "temporal_overlap": 8}
    graph = draw(name, width=6 * side, height=4 * side, tokens_per_step=12)
    graph["decode"] = node("VAEDecodeTiled", samples=["draw", 0], **tiles)
    graph["encode"] = node("VAEEncodeTiled", pixels=["decode", 0], **tiles)
    assert run_latent(host, graph, "encode").shape == (1, 32, 4, 6)
