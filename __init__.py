"""VGT for ComfyUI: the entry point that the host imports."""

import logging

try:
    from .nodes import comfy_entrypoint
except ImportError as error:
    if not (error.name or "").startswith("comfy_api"):
        raise
    # without an entry point the host lists this pack as failed, with no traceback
    logging.error("VGT needs ComfyUI 0.3.48 or newer: update ComfyUI, then start it again.")

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
