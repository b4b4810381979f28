"""Small graphs in API format, the tiny models they use, and how their results are read."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from host import HostError, Interrupted, PromptRejected
from vgt.files.reading import convert

STRICT = {"rtol": 0, "atol": 1e-4 if torch.cuda.is_available() else 1e-5}
"""How close a graph's numbers come to those of Python."""
ALIKE = {"rtol": 0, "atol": 1e-4}
"""How close an image's numbers come to those of the same image in another batch."""

FIXTURES = Path(__file__).parent / "fixtures"

INTERN, QWEN = "internvl3.safetensors", "qwen2_5_vl.safetensors"
TOKENIZER_ONLY = "tokenizer_only.safetensors"
NOT_A_CHECKPOINT, TRUNCATED, ANOTHER_MODEL = "no_checkpoint.safetensors", "truncated.safetensors", "another.safetensors"
BAD_MODELS = (NOT_A_CHECKPOINT, TRUNCATED, ANOTHER_MODEL)

SAMPLER = {
    "prompt": "a photo of a cat",
    "negative_prompt": "",
    "seed": 1,
    "width": 56,
    "height": 56,
    "batch_size": 1,
    "cfg": 3.0,
    "tokens_per_step": 1,
    "order": "random",
    "decoding": "published",
    "grouping": "uniform",
    "denoise": 1.0,
}
FLOW = {"steps": 2, "cfg_schedule": "linear", "last_step": 0.04, "solver": "euler_maruyama", "temperature": 1.0}

SLOW = {"width": 112, "height": 112, "flow": {"steps": 800}}
"""A run that is long enough for previews."""


def install_models(host):
    """Put the fixtures' tiny models, and files that are none, into a host's models/vgt; returns that folder."""
    folder = host.base / "models" / "vgt"
    if (folder / ANOTHER_MODEL).exists():
        return folder
    convert(FIXTURES / "internvl3", folder / INTERN)
    convert(FIXTURES / "qwen2_5_vl", folder / QWEN)
    convert(FIXTURES / "internvl3" / "vgt_ae_internvl3.pth", folder / TOKENIZER_ONLY)
    (folder / NOT_A_CHECKPOINT).write_bytes(b"<html>404: Not Found</html>" * 10)
    whole = (folder / INTERN).read_bytes()
    (folder / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    unet = {"model.diffusion_model.input_blocks.0.0.weight": next(iter(load_file(folder / INTERN).values()))}
    save_file(unet, folder / ANOTHER_MODEL)
    return folder


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def load(model=INTERN, dtype="fp32"):
    """{"load": VGT Loader}; its outputs are ["load", 0], the model, and ["load", 1], the VAE."""
    return {"load": node("VGTLoader", model=model, dtype=dtype)}


def draw(model=INTERN, dtype="fp32", flow=None, **sampler):
    """Loader and sampler; flow settings other than FLOW's come as a dict, other inputs by name."""
    return {
        **load(model, dtype),
        "flow": node("VGTFlowHeadSettings", **FLOW | (flow or {})),
        "draw": node("VGTARSampler", model=["load", 0], flow_head=["flow", 0], **SAMPLER | sampler),
    }


def save_latent(graph, *sources):
    """The graph with Save Latent ("save0", "save1" …) on each of the named nodes' first outputs, or on "draw"."""
    saves = {
        f"save{index}": node("SaveLatent", samples=[source, 0], filename_prefix="latents/test")
        for index, source in enumerate(sources or ("draw",))
    }
    return {**graph, **saves}


def save_image(graph, source):
    return {**graph, "image": node("SaveImage", images=[source, 0], filename_prefix="images/test")}


def latent_file(host, outputs, node_id="save0"):
    """Path of what a Save Latent node has written."""
    entry = outputs[node_id]["latents"][0]
    return host.base / "output" / entry["subfolder"] / entry["filename"]


def latent_of(host, outputs, node_id="save0"):
    """The tensor that a Save Latent node has written."""
    return load_file(latent_file(host, outputs, node_id))["latent_tensor"]


def run_latent(host, graph, *sources):
    """Run a graph; returns the latents of the named nodes (of "draw" when none is named), alone or as a list."""
    outputs = host.run(save_latent(graph, *sources))
    latents = [latent_of(host, outputs, f"save{index}") for index in range(max(1, len(sources)))]
    return latents[0] if len(latents) == 1 else latents


def upload_latent(host, samples, name):
    """Put a latent where Load Latent finds it; returns {name: Load Latent}."""
    save_file(
        {"latent_tensor": samples.contiguous(), "latent_format_version_0": torch.tensor([])}, _input_file(host, name)
    )
    return {name: node("LoadLatent", latent=f"{name}.latent")}


def _input_file(host, name):
    """Where Load Latent looks for a latent of this name."""
    return host.base / "input" / f"{name}.latent"


def copy_to_input(host, path, name):
    """Copy a saved latent into the input folder; returns {name: Load Latent}."""
    shutil.copy(path, _input_file(host, name))
    return {name: node("LoadLatent", latent=f"{name}.latent")}


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
        assert error.exception_type in ("ValueError", "FileNotFoundError", "vgt.CheckpointError")
    return error


def decode_pixels(host, outputs, node_id="image"):
    """[H, W, 3] of a saved picture."""
    return pixels_of(host.view(**outputs[node_id]["images"][0]))


def pixels_of(file: bytes):
    """[H, W, 3] of a picture file."""
    picture = Image.open(io.BytesIO(file)).convert("RGB")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
