"""A picture from outside: VGT Encode brings it to the model's size, and the sampler names that where it is not."""

import shutil

import pytest
import torch
from PIL import Image

from bundled import PATH, SIDE
from graphs import fails, node, run_latent, save_latent

BUNDLED = "bundled.safetensors"


@pytest.fixture(scope="module")
def camera(host, models):
    """Loader and a picture of 640x480: {"load", "photo", "mask"}."""
    shutil.copy(PATH, models / BUNDLED)
    pixels = torch.randint(0, 256, (480, 640, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    path = models / "camera.png"
    Image.fromarray(pixels.numpy()).save(path)
    name = host.upload_image(path)
    path.unlink()
    return {"load": node("VGTLoader", model=BUNDLED), "photo": node("LoadImage", image=name)}


def encode(camera, fit):
    return camera | {"encode": node("VGTEncode", image=["photo", 0], vae=["load", 1], fit=fit)}


def test_model_size_is_what_the_model_draws(host, camera):
    graph = encode(camera, "model size")
    graph["mask"] = node("SolidMask", value=1.0, width=640, height=240)  # of the size of the picture, upper half
    graph["field"] = node("SolidMask", value=0.0, width=640, height=480)
    graph["upper"] = node("MaskComposite", destination=["field", 0], source=["mask", 0], x=0, y=0, operation="add")
    graph["masked"] = node("SetLatentNoiseMask", samples=["encode", 0], mask=["upper", 0])
    graph["draw"] = node("VGTARSampler", model=["load", 0], prompt="a red circle", latent=["masked", 0], seed=1)
    before, after = run_latent(host, graph, "encode", "draw")
    assert before.shape == after.shape == (1, 32, SIDE * 3 // 4 // 28, SIDE // 28)
    changed = (before != after).any(1)[0]
    assert changed[0].all() and not changed[-1].any()


def test_a_picture_too_large_is_told_the_remedy(host, camera):
    graph = encode(camera, "crop")
    graph["draw"] = node("VGTARSampler", model=["load", 0], prompt="a red circle", latent=["encode", 0], denoise=0.5)
    error = fails(host, save_latent(graph))
    told = f"616x476 pixels; this model draws at most {SIDE}x{SIDE}, so choose fit 'model size' in VGT Encode"
    assert told in str(error)
