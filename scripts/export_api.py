"""Write workflows/api/NAME.json: every workflow in the form that POST /prompt takes, for scripts.

COMFYUI_PATH names the ComfyUI, as for scripts/dev.py; run it with the python that has ComfyUI's requirements:
`.venv/bin/python scripts/export_api.py`.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import comfy_host
import workflow_api

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"
FOLDER = WORKFLOWS / "api"  # the template browser lists the folder above only


def exports(object_info):
    """Make the texts of the exported files by name, for a host's `GET /object_info`."""
    texts = {}
    for path in sorted(WORKFLOWS.glob("*.json")):
        graph = workflow_api.to_api(json.loads(path.read_text(encoding="utf-8")), object_info)
        texts[path.name] = json.dumps(graph, indent=2, ensure_ascii=False) + "\n"
    return texts


def main():
    comfyui = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".cache" / "ComfyUI")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        with comfy_host.Host(comfyui, base, sys.executable, log=base / "host.log") as host:
            texts = exports(host.object_info())
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
