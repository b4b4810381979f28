"""LoRAs under the host's weight management: its own file formats and its own patches."""

from __future__ import annotations

import logging
from dataclasses import replace

import comfy.lora
import comfy.utils
import folder_paths
from torch import Tensor

from ...vgt.files.lora import Base, fit, places
from ...vgt.lora import base_of_generator
from .loading import VGTModel, require_generator

FOLDER = "loras"
NONE = "[None]"
"""As the host's own nodes call it."""


def lora_names() -> list[str]:
    """The files in models/loras, and in output/loras, where the host saves what it trains; and NONE."""
    return [NONE, *folder_paths.get_filename_list(FOLDER)]


def read_file(name: str) -> dict[str, Tensor] | None:
    """The tensors of a file by its name in the list; None for NONE. Raises FileNotFoundError."""
    if name == NONE:
        return None
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise FileNotFoundError(f"There is no LoRA {name} in models/{FOLDER}; put it there or choose another.")
    try:
        return comfy.utils.load_torch_file(path, safe_load=True)
    except Exception as error:  # of safetensors, of pickle, of zip …
        raise ValueError(f"{name} cannot be read as a LoRA ({str(error).splitlines()[0]}).") from error


def check_tensors(lora) -> dict[str, Tensor]:
    """A LORA_MODEL as it comes, which the API can fill with anything. Raises ValueError."""
    if not isinstance(lora, dict) or not lora or not all(isinstance(value, Tensor) for value in lora.values()):
        raise ValueError("The lora input holds no LoRA; connect the lora of VGT Train LoRA, or nothing.")
    return lora


def base_of_model(model: VGTModel) -> Base:
    generator = model.patcher.model
    return base_of_generator(model.name, generator.family, dict(generator.named_parameters()))


def apply(model: VGTModel, tensors: dict[str, Tensor], name: str, strength: float) -> VGTModel:
    """The model with a LoRA over those that it has; it stays as it is itself. name: the LoRA's, for messages.

    Raises ValueError for a LoRA of another model.
    """
    generator = require_generator(model).patcher.model
    shapes = {weight: parameter.shape for weight, parameter in generator.named_parameters()}
    fitting = fit(tensors, places(generator.config, shapes), name, base_of_model(model))
    if fitting.warning:
        logging.warning(f"VGT: {fitting.warning}")
    if strength == 0:
        return model
    targets = {
        layer: place.name if place.first is None else (place.name, (0, place.first, place.shape[0]))
        for layer, place in fitting.layers.items()
    }
    patcher = model.patcher.clone()
    patcher.add_patches(comfy.lora.load_lora(fitting.tensors, targets), strength)
    return replace(model, patcher=patcher)
