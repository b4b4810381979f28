"""The single-file format: one .safetensors with everything of a model.

All tensors under our module names, the configuration as JSON under `vgt.config` in the metadata, how its maker would
draw under `vgt.recommended`, the words its training knew under `vgt.vocabulary`, a matrix for previews under
`vgt.latent_rgb` (latent_rgb.py), and the tokenizer as a uint8 tensor
`tokenizer.json`.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelConfig, UnknownModel
from ..latent_rgb import LatentRGB, checked
from ..sampling import SamplingSettings
from .checkpoint import Checkpoint, CheckpointError
from .config_check import check_config
from .durable import put_in_place
from .layout import StackedRows

CONFIG_KEY = "vgt.config"
RECOMMENDED_KEY = "vgt.recommended"
VOCABULARY_KEY = "vgt.vocabulary"
LATENT_RGB_KEY = "vgt.latent_rgb"
ATTRIBUTION_KEY = "vgt.attribution"
TOKENIZER_KEY = "tokenizer.json"

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8",
}
"""What safetensors calls them."""


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write the single-file format, tensor by tensor. The file appears under its name only when it is whole.

    Raises FileNotFoundError when the folder is not there, CheckpointError for a name without .safetensors, and OSError.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path.name} is no name for a converted model; let it end in .safetensors.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} to; make it first.")
    tensors = dict(checkpoint.tensors)
    if checkpoint.tokenizer_json is not None:
        tensors[TOKENIZER_KEY] = torch.frombuffer(bytearray(checkpoint.tokenizer_json), dtype=torch.uint8)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as file:
            _write_safetensors(file, tensors, _metadata(checkpoint))
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    metadata = {CONFIG_KEY: json.dumps(checkpoint.config.to_dict())}
    if recommended := checkpoint.recommended.to_dict():
        metadata[RECOMMENDED_KEY] = json.dumps(recommended)
    if checkpoint.vocabulary is not None:
        metadata[VOCABULARY_KEY] = json.dumps(checkpoint.vocabulary)
    if checkpoint.latent_rgb is not None:
        metadata[LATENT_RGB_KEY] = json.dumps(checkpoint.latent_rgb)
    if checkpoint.attribution:
        metadata[ATTRIBUTION_KEY] = checkpoint.attribution
    return metadata


def _write_safetensors(file, tensors: dict[str, Tensor | StackedRows], metadata: dict[str, str]) -> None:
    """As safetensors.torch.save_file, which would need every tensor in memory at once."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # which keeps them aligned
    header, end = {"__metadata__": metadata}, 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.dtype.itemsize * tensor.shape.numel()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(tensors[name].contiguous().detach().cpu().flatten().view(torch.uint8).numpy())


def from_single_file(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Checkpoint:
    """The model in such a file, given what lies in it. Raises CheckpointError for metadata that cannot be used."""
    try:
        config = ModelConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
        check_config(config)
    except UnknownModel as error:
        raise CheckpointError(f"{path.name} is of a newer VGT: {error}; update VGT.") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f"{path.name} holds a {CONFIG_KEY} that cannot be used ({reason}).") from error
    try:
        recommended = SamplingSettings.from_dict(json.loads(metadata.get(RECOMMENDED_KEY, "{}")))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} holds a {RECOMMENDED_KEY} that cannot be used ({error}).") from error
    vocabulary = _words(path, metadata.get(VOCABULARY_KEY))
    tokenizer = tensors.pop(TOKENIZER_KEY, None)
    if tokenizer is not None and tokenizer.dtype != torch.uint8:
        raise CheckpointError(f"{path.name} holds a {TOKENIZER_KEY} that is no text.")
    tokenizer_json = None if tokenizer is None else tokenizer.numpy().tobytes()
    latent_rgb = _matrix(path, metadata.get(LATENT_RGB_KEY))
    attribution = metadata.get(ATTRIBUTION_KEY)
    return Checkpoint(path, config, tensors, tokenizer_json, recommended, vocabulary, latent_rgb, attribution)


def _matrix(path: Path, text: str | None) -> LatentRGB | None:
    try:
        return None if text is None else checked(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} holds a {LATENT_RGB_KEY} that cannot be used ({error}).") from error


def _words(path: Path, text: str | None) -> tuple[str, ...] | None:
    try:
        words = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        words = 0
    if words is None:
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CheckpointError(f"{path.name} holds a {VOCABULARY_KEY} that is no list of words.")
    return tuple(words)
