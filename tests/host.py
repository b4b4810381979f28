"""A real ComfyUI for the tests: `Host(base)` is scripts/comfy_host.py's, with what a test has at hand filled in."""

import os
import re
import sys
from pathlib import Path

import comfy_host
from comfy_host import HostError, Interrupted, PromptRejected

__all__ = ["Host", "HostError", "Interrupted", "PromptRejected"]

ROOT = Path(__file__).resolve().parent.parent


def comfyui_path():
    """The ComfyUI to test with. Raises HostError if there is none."""
    folder = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".cache" / "ComfyUI").resolve()
    if not (folder / "main.py").is_file():
        raise HostError(f"there is no ComfyUI at {folder}: run `python3 scripts/dev.py test`, or set COMFYUI_PATH.")
    return folder


def is_newer():
    """Whether the ComfyUI to test with does what 0.30 does and 0.3.75 does not."""
    text = (comfyui_path() / "comfyui_version.py").read_text(encoding="utf-8")
    return tuple(int(part) for part in re.search(r'"([\d.]+)"', text)[1].split(".")) >= (0, 30)


class Host(comfy_host.Host):
    """A ComfyUI on a free port with a base directory of its own (models/, input/, output/, custom_nodes/ComfyUI-VGT).

    It runs on the device that torch sees; `CUDA_VISIBLE_DEVICES=` (empty) in the environment keeps it on the CPU.
    """

    def __init__(self, base, args=(), env=None, comfyui=None):
        log = Path(base) / "host.log"
        super().__init__(comfyui or comfyui_path(), base, sys.executable, args, log=log, env=env)
