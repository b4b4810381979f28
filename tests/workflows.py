"""The workflow files, and a host made ready to run them."""

import io
import json
import shutil

from PIL import Image, ImageChops

import workflow_api
from bundled import NAME, PATH, SIDE
from graphs import FIXTURES
from host import ROOT
from vgt.files.reading import convert

FOLDER = ROOT / "workflows"

SQUARE = (SIDE, SIDE)
PICTURES = {
    "VGT-1-text-to-image": [SQUARE],
    "VGT-6-reconstruct": [(2 * SIDE, SIDE)],
    "VGT-3-inpaint": [SQUARE],
    "VGT-4-outpaint": [SQUARE],
    "VGT-5-variations": [SQUARE] * 3,
    "VGT-2-parallel-decoding": [SQUARE] * 3,
    "VGT-7-latent-tools": [SQUARE, (2 * SIDE, SIDE)],
    "VGT-8-train-lora": [SQUARE],
    "VGT-8-use-lora": [SQUARE],
    "VGT-7-regions": [SQUARE],
    "VGT-7-best-of-eight": [SQUARE],
}
"""The sizes of the pictures that each workflow saves."""
TRAINS = ("VGT-8-train-lora",)
"""Workflows that take minutes as they are saved; `to_api` makes them short."""
DOWNLOADS = ["VGT-9-published-weights-4-GB"]
"""Workflows that first download a model of several GB: they run where a local hub has a small one."""
ALL = [*PICTURES, *DOWNLOADS]


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def prepare(host):
    """Give a host what the workflows name: the model, unless it comes with the pack, and ComfyUI's example.png."""
    model = host.base / "models" / "vgt" / NAME
    if not PATH.exists() and not model.exists():
        convert(FIXTURES / "qwen2_5_vl", model)
    shutil.copy(host.comfyui / "input" / "example.png", host.base / "input")


def to_api(host, name):
    """The graph of a workflow; training takes few steps, or it would take minutes."""
    graph = workflow_api.to_api(read(name), host.object_info())
    for node in graph.values():
        if node["class_type"] == "VGTTrainLoRA":
            node["inputs"] |= {"steps": 3, "keep": "a red circle"}
    return graph


def pictures(host, outputs, kind="output"):
    """The pictures of a run in the order of the nodes: those saved, or with kind "temp" those only shown."""
    images = [image for node in sorted(outputs, key=int) for image in outputs[node].get("images", [])]
    return [Image.open(io.BytesIO(host.view(**image))) for image in images if image["type"] == kind]


def same(one, other):
    """Whether two pictures are the same, pixel for pixel."""
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None
