"""Every file format in, one format out.

In: full AR checkpoints and tokenizers as published or self-trained (.pth or .safetensors beside base/ and dc_ae/), and
files of our own. Out: one .safetensors with all tensors under our module names, the configuration as JSON under
`vgt.config` in the metadata, and the tokenizer as a uint8 tensor `tokenizer.json`.

Nothing a pickle names is ever run (torch_file.py). Weights stay memory-mapped until a module takes them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import ModelConfig
from .layout import Joined, LayoutError, read_config, to_our_names
from .qwen_tokenizer import build_tokenizer_json, read_added_tokens
from .torch_file import TorchFileError, read_torch_file

CONFIG_KEY = "vgt.config"
TOKENIZER_KEY = "tokenizer.json"

_TORCH_SUFFIXES = {".pth", ".pt", ".bin", ".ckpt"}
_SUFFIXES = _TORCH_SUFFIXES | {".safetensors"}


class CheckpointError(ValueError):
    """A model file cannot be used. The message names the file, what is wrong, and what it was taken for."""


@dataclass
class Checkpoint:
    """A model as read from disk."""

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor | Joined]
    """Under our module names: `autoencoder.…` and `generator.…`; memory-mapped where the file allows it."""
    tokenizer_json: bytes | None
    """None for a tokenizer-only model, or where the base model's tokenizer files are absent."""

    def state(self, part: str) -> dict[str, Tensor | Joined]:
        """The tensors of one part, "autoencoder" or "generator", under the names inside it."""
        prefix = part + "."
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def read_checkpoint(path: str | Path, tokenizer_fallback: Callable[[str], bytes | None] | None = None) -> Checkpoint:
    """Read a model file, or a folder in the published layout.

    `tokenizer_fallback(family)` gives a tokenizer.json where the base model's tokenizer files are absent.
    Raises CheckpointError; FileNotFoundError when there is nothing at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no model at {path}; check the name.")
    try:
        if path.is_dir():
            return _read_folder(path, tokenizer_fallback)
        return _read_file(path, path.parent, tokenizer_fallback)
    except (TorchFileError, LayoutError, SafetensorError) as error:
        raise CheckpointError(f"{path.name} cannot be loaded: {error}.") from error


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write the single-file format. The file appears under its name only when it is whole."""
    path = Path(path)
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    if checkpoint.tokenizer_json is not None:
        tensors[TOKENIZER_KEY] = torch.frombuffer(bytearray(checkpoint.tokenizer_json), dtype=torch.uint8)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, partial, metadata={CONFIG_KEY: json.dumps(checkpoint.config.to_dict())})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def convert(
    source: str | Path, target: str | Path, tokenizer_fallback: Callable[[str], bytes | None] | None = None
) -> None:
    """Turn a published file or folder into the single-file format. Takes and raises what read_checkpoint does."""
    save_checkpoint(read_checkpoint(source, tokenizer_fallback), target)


def _read_folder(folder: Path, tokenizer_fallback) -> Checkpoint:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise CheckpointError(f"{folder} holds no weight file; put the model's .pth or .safetensors there.")
    checkpoints, errors = [], []
    for file in files:
        try:
            checkpoints.append(_read_file(file, folder, tokenizer_fallback))
        except (TorchFileError, LayoutError, SafetensorError) as error:
            errors.append(f"{file.name} cannot be loaded: {error}.")
    full = [checkpoint for checkpoint in checkpoints if checkpoint.config.generator]
    if len(full) > 1:
        names = ", ".join(checkpoint.path.name for checkpoint in full)
        raise CheckpointError(f"{folder} holds several full models ({names}); name one of them.")
    if not checkpoints or (errors and not full):
        raise CheckpointError(" ".join(errors))
    return (full or checkpoints)[0]


def _read_file(path: Path, folder: Path, tokenizer_fallback) -> Checkpoint:
    if path.suffix.lower() == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if CONFIG_KEY in metadata:
            return _our_file(path, metadata[CONFIG_KEY], tensors)
    elif path.suffix.lower() in _TORCH_SUFFIXES:
        tensors = _state_dict(read_torch_file(path))
    else:
        raise CheckpointError(f"{path.name} is no model file; VGT reads .safetensors and .pth.")
    config = read_config(tensors, folder)
    tokenizer_json = None
    if config.generator:
        tokenizer_json = _read_tokenizer(folder / "base")
        if tokenizer_json is None and tokenizer_fallback is not None:
            tokenizer_json = tokenizer_fallback(config.family)
    return Checkpoint(path, config, to_our_names(tensors, config), tokenizer_json)


def _our_file(path: Path, config_json: str, tensors: dict[str, Tensor]) -> Checkpoint:
    try:
        config = ModelConfig.from_dict(json.loads(config_json))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path.name} holds a {CONFIG_KEY} that cannot be read ({error}).") from error
    tokenizer = tensors.pop(TOKENIZER_KEY, None)
    return Checkpoint(path, config, tensors, None if tokenizer is None else tokenizer.numpy().tobytes())


def _state_dict(content: object) -> dict[str, Tensor]:
    """The weights in what a .pth holds: a plain state dict, or one under `state_dict` or `model`; EMA weights win."""
    if not isinstance(content, dict):
        raise LayoutError("it holds no state dict")
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), content)
    ema = content.get("ema_state_dict")
    tensors = {}
    for source in (state, ema if isinstance(ema, dict) else {}):
        for name, value in source.items():
            if isinstance(name, str) and isinstance(value, Tensor):
                tensors[name.removeprefix("module.")] = value
    if not tensors:
        raise LayoutError("it holds no tensors")
    return tensors


def _read_tokenizer(base: Path) -> bytes | None:
    """The base model's tokenizer as a tokenizer.json; made from vocab.json and merges.txt if need be."""
    file = base / "tokenizer.json"
    if file.is_file():
        return file.read_bytes()
    if not (base / "vocab.json").is_file() or not (base / "merges.txt").is_file():
        return None
    return build_tokenizer_json(base, read_added_tokens(base / "tokenizer_config.json"))


def load_state(module: torch.nn.Module, state: dict[str, Tensor | Joined], path: Path, taken_for: str) -> None:
    """Give `module` (built on the meta device or not) its weights, each in the dtype the module was built with.

    Tensors already in that dtype are taken as they are, memory-mapped. Raises CheckpointError naming `path` when
    tensors are missing, unexpected or misshapen.
    """
    expected = module.state_dict()
    problems = []
    if missing := sorted(expected.keys() - state.keys()):
        problems.append(f"{_some(missing)} missing")
    if unexpected := sorted(state.keys() - expected.keys()):
        problems.append(f"{_some(unexpected)} unexpected")
    misshapen = sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
    if misshapen:
        first = misshapen[0]
        problems.append(
            f"{_some(misshapen)} misshapen ({list(state[first].shape)} instead of {list(expected[first].shape)})"
        )
    if problems:
        raise CheckpointError(f"{path.name} does not fit {taken_for}: {'; '.join(problems)}.")
    state = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False)


def _some(names: list[str]) -> str:
    shown = ", ".join(re.sub(r"\s", " ", name)[:80] for name in names[:3])
    return (
        f"{shown} and {len(names) - 3} more tensors are"
        if len(names) > 3
        else f"{shown} {'are' if names[1:] else 'is'}"
    )
