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

from PIL import Image

import comfy_host
import workflow_api

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
SIDE, GAP, BACKGROUND = 512, 8, (38, 38, 38)  # the background is that of the template browser's cards


def thumbnail(pictures):
    """A square of SIDE pixels with the pictures (all of one size) in rows and columns."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    cell = (SIDE - GAP * (columns - 1)) / columns
    scale = min(cell / width, cell / height)
    width, height = int(width * scale), int(height * scale)
    sheet = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    top = (SIDE - rows * height - (rows - 1) * GAP) // 2
    for row in range(rows):
        in_row = pictures[row * columns : (row + 1) * columns]
        left = (SIDE - len(in_row) * width - (len(in_row) - 1) * GAP) // 2
        for column, picture in enumerate(in_row):
            place = (left + column * (width + GAP), top + row * (height + GAP))
            sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
    return sheet


def pictures_of(host, outputs):
    """All pictures that a run has shown, previews too, in the order of the nodes."""
    images = [image for node in sorted(outputs, key=int) for image in outputs[node].get("images", [])]
    return [Image.open(io.BytesIO(host.view(**image))).convert("RGB") for image in images]


def names():
    """The workflows that run here; from_published_weights would download a model, and shows its graph instead."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json") if path.stem != "from_published_weights")


def draw(host, names):
    """Run these workflows and write their thumbnails."""
    for name in names:
        workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
        graph = workflow_api.to_api(workflow, host.object_info())
        pictures = pictures_of(host, host.run(graph, timeout=3600))
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
