"""Draw the thumbnails of the template browser: run every workflow, or the named ones, in a real ComfyUI and write
workflows/NAME.jpg from the pictures it shows. COMFYUI_PATH names the ComfyUI, as for scripts/dev.py; run it with the
python that has ComfyUI's requirements: `.venv/bin/python scripts/thumbnails.py [NAME ...]`.
"""

import argparse
import io
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

import comfy_host
import workflow_api

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
SIDE, GAP, BACKGROUND = 512, 8, (38, 38, 38)  # the background is that of the template browser's cards


def thumbnail(pictures):
    """Put pictures in rows and columns on a square of SIDE pixels, all at one scale."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = (max(sides) for sides in zip(*(picture.size for picture in pictures)))
    scale = (SIDE - GAP * (columns - 1)) / columns / max(width, height)
    pictures = [ImageOps.scale(picture, scale, Image.Resampling.LANCZOS) for picture in pictures]
    sheet = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    height = int(height * scale)
    top = (SIDE - rows * height - (rows - 1) * GAP) // 2
    for row in range(rows):
        in_row = pictures[row * columns : (row + 1) * columns]
        left = (SIDE - sum(picture.width for picture in in_row) - (len(in_row) - 1) * GAP) // 2
        for picture in in_row:
            sheet.paste(picture, (left, top + row * (height + GAP)))
            left += picture.width + GAP
    return sheet


def pictures_of(host, graph, outputs):
    """Return all pictures that a run has shown, previews too, in the order of the nodes; curves are none."""
    nodes = [node for node in sorted(outputs, key=int) if graph[node]["class_type"] != "LossGraphNode"]
    images = [image for node in nodes for image in outputs[node].get("images", [])]
    return [Image.open(io.BytesIO(host.view(**image))).convert("RGB") for image in images]


def names():
    """List the workflows that run here; one would download a model, and shows its graph instead."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json") if path.stem != "VGT-9-published-weights-4-GB")


def draw(host, names):
    """Run these workflows and write their thumbnails."""
    for name in names:
        workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        graph = workflow_api.to_api(workflow, host.object_info())
        pictures = pictures_of(host, graph, host.run(graph, timeout=3600))
        thumbnail(pictures).save(WORKFLOWS / f"{name}.jpg", quality=88, optimize=True)
        print(f"{name}.jpg", flush=True)


def main():
    parser = argparse.ArgumentParser(description="Draw the thumbnails of workflows/.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows to run (default: all)")
    parser.add_argument("--base", metavar="DIR", type=Path, help="ComfyUI base directory (default: a new one)")
    options = parser.parse_args()
    comfyui = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".cache" / "ComfyUI")
    with tempfile.TemporaryDirectory() as scratch:
        base = options.base or Path(scratch)
        (base / "input").mkdir(parents=True, exist_ok=True)
        shutil.copy(comfyui / "input" / "example.png", base / "input")
        with comfy_host.Host(comfyui, base, sys.executable, log=Path(scratch) / "host.log") as host:
            draw(host, options.names or names())


if __name__ == "__main__":
    main()
