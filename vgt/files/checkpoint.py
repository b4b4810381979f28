"""Every file format in, one format out.

In: full AR checkpoints and tokenizers as published or self-trained (.pth or .safetensors beside base/ and dc_ae/), and
files of our own. Out: one .safetensors with all tensors under our module names, the configuration as JSON under
`vgt.config` in the metadata, how its maker would draw under `vgt.recommended`, the words its training knew under
`vgt.vocabulary`, and the tokenizer as a uint8 tensor `tokenizer.json`.

Nothing a pickle names is ever run (torch_file.py). Weights stay memory-mapped until a module takes them.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..config import ModelConfig, UnknownModel
from ..sampling import SamplingSettings, default_side
from .config_check import check_config
from .durable import put_in_place
from .layout import StackedRows, to_our_names
from .published_config import read_config
from .sizes import LayoutError
from .tokenizer_files import build_tokenizer_json, read_added_tokens
from .torch_file import TorchFileError, read_torch_file

CONFIG_KEY = "vgt.config"
RECOMMENDED_KEY = "vgt.recommended"
VOCABULARY_KEY = "vgt.vocabulary"
ATTRIBUTION_KEY = "vgt.attribution"
TOKENIZER_KEY = "tokenizer.json"

_TORCH_SUFFIXES = {".pth", ".pt", ".bin", ".ckpt"}
_SUFFIXES = _TORCH_SUFFIXES | {".safetensors"}
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
_MAX_TOKENIZER = 256 << 20
"""Bytes of a tokenizer.json."""


class CheckpointError(ValueError):
    """A model file cannot be used. The message names the file, what is wrong, and what it was taken for."""

    __module__ = "vgt"  # where it is imported from; the host shows this in its log and API


@dataclass
class Checkpoint:
    """A model as read from disk."""

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor | StackedRows]
    """Under our module names: `autoencoder.…` and `generator.…`; memory-mapped where the file allows it."""
    tokenizer_json: bytes | None
    """None for a tokenizer-only model, or where the base model's tokenizer files are absent."""
    recommended: SamplingSettings = field(default_factory=SamplingSettings)
    """How the model's maker would draw; what is open in it is as published."""
    vocabulary: tuple[str, ...] | None = None
    """The words that its training's captions use, in lower case; None where they were not counted."""
    attribution: str | None = None
    """Whose pictures it was trained on, and their licences, where those ask to be named."""

    def state(self, part: str) -> dict[str, Tensor | StackedRows]:
        """The tensors of one part, "autoencoder" or "generator", under the names inside it."""
        prefix = part + "."
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def read_checkpoint(
    path: str | Path,
    tokenizer_fallback: Callable[[str], bytes | None] | None = None,
    find: Callable[[str], str | Path | None] | None = None,
) -> Checkpoint:
    """Read a model file, a folder in the published layout, or a distilled head's file with its model (head_file.py).

    `tokenizer_fallback(family)` gives a tokenizer.json where the base model's tokenizer files are absent.
    `find(name)` gives the path of a distilled head's model; without it, the model lies beside the head.
    Raises CheckpointError; FileNotFoundError when there is nothing at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no model at {path}; check the name.")
    try:
        if path.is_dir():
            return _read_folder(path, tokenizer_fallback)
        return _read_file(path, path.parent, tokenizer_fallback, find)
    except (TorchFileError, LayoutError) as error:
        raise CheckpointError(f"{path.name} cannot be loaded: {error}.") from error


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


def convert(
    source: str | Path, target: str | Path, tokenizer_fallback: Callable[[str], bytes | None] | None = None
) -> None:
    """Turn a published file or folder into the single-file format.

    Takes what read_checkpoint takes and raises what that and save_checkpoint raise; nothing is written unless it is a
    whole model.
    """
    from ..networks.autoencoder import Autoencoder
    from ..run.generation import Generator

    checkpoint = read_checkpoint(source, tokenizer_fallback)
    config = checkpoint.config
    modules = {"autoencoder": Autoencoder(config.autoencoder, device="meta")}
    if config.generator:
        modules["generator"] = Generator(config.generator, config.family, config.token_pixels, device="meta")
        if checkpoint.tokenizer_json is None:
            raise CheckpointError(
                f"{checkpoint.path.name} has no tokenizer beside it; put the base model's tokenizer.json into base/."
            )
    for part, module in modules.items():
        taken_for = f"a VGT {part} ({config.family})"
        check_fit(module.state_dict(), checkpoint.state(part), checkpoint.path, taken_for)
    save_checkpoint(checkpoint, target)


def _read_folder(folder: Path, tokenizer_fallback) -> Checkpoint:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise CheckpointError(f"{folder} holds no weight file; put the model's .pth or .safetensors there.")
    checkpoints, errors = [], []
    for file in files:
        try:
            checkpoints.append(_read_file(file, folder, tokenizer_fallback))
        except (TorchFileError, LayoutError) as error:
            errors.append(f"{file.name} cannot be loaded: {error}.")
        except CheckpointError as error:
            errors.append(str(error))
    full = [checkpoint for checkpoint in checkpoints if checkpoint.config.generator]
    if errors and not full:
        raise CheckpointError(" ".join(errors))
    candidates = full or checkpoints
    if len(candidates) > 1:
        names = ", ".join(checkpoint.path.name for checkpoint in candidates)
        raise CheckpointError(
            f"{folder} holds several {'full models' if full else 'tokenizers'} ({names}); name one of them."
        )
    return candidates[0]


def _read_file(path: Path, folder: Path, tokenizer_fallback, find=None) -> Checkpoint:
    from .head_file import HEAD_KEY, read_head

    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        if HEAD_KEY in metadata:
            return read_head(path, metadata, tensors, lambda name: _model_of(path, name, tokenizer_fallback, find))
        if CONFIG_KEY in metadata:
            return _our_file(path, metadata, tensors)
    elif path.suffix.lower() in _TORCH_SUFFIXES:
        tensors = _state_dict(read_torch_file(path))
    else:
        raise CheckpointError(f"{path.name} is no model file; VGT reads .safetensors and .pth.")
    config = read_config(tensors, folder)
    tensors = to_our_names(tensors, config)
    _check_tensors(tensors, config, path)
    tokenizer_json = None
    if config.generator:
        tokenizer_json = read_tokenizer(folder / "base")
        if tokenizer_json is None and tokenizer_fallback is not None:
            tokenizer_json = tokenizer_fallback(config.family)
    return Checkpoint(path, config, tensors, tokenizer_json, _with_size(SamplingSettings(), config))


def _model_of(head: Path, name: str, tokenizer_fallback, find) -> Checkpoint:
    """The model that a distilled head names; FileNotFoundError where there is none."""
    found = head.with_name(name) if find is None else find(name)
    if found is None or Path(found) == head:
        raise FileNotFoundError(name)
    return read_checkpoint(found, tokenizer_fallback)


def _with_size(recommended: SamplingSettings, config: ModelConfig) -> SamplingSettings:
    """The same with a size where it says none."""
    if config.generator is None:
        return recommended
    height, width = (default_side(config.token_pixels, side) for side in config.generator.grid)
    return replace(recommended, height=recommended.height or height, width=recommended.width or width)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, memory-mapped, and the metadata. The library checks sizes and offsets before it maps the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict
    except OSError:
        raise
    except Exception as error:  # SafetensorError, and what torch says to a dtype it does not know
        raise LayoutError("it is truncated, damaged or not a safetensors file") from error


def _our_file(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Checkpoint:
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
    _check_tensors(tensors, config, path)
    tokenizer_json = None if tokenizer is None else tokenizer.numpy().tobytes()
    recommended = _with_size(recommended, config)
    attribution = metadata.get(ATTRIBUTION_KEY)
    return Checkpoint(path, config, tensors, tokenizer_json, recommended, vocabulary, attribution)


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


def _check_tensors(tensors: dict[str, Tensor | StackedRows], config: ModelConfig, path: Path) -> None:
    """Raise LayoutError for tensors of no part of the model, and for such as would need memory that no file filled."""
    parts = ("autoencoder.", "generator.") if config.generator else ("autoencoder.",)
    kind = "a full VGT model" if config.generator else "a VGT-AE"
    if unexpected := sorted(name for name in tensors if not name.startswith(parts)):
        raise LayoutError(f"taken for {kind} ({config.family}), {_some(unexpected)} unexpected")
    if others := sorted(name for name in tensors if not tensors[name].dtype.is_floating_point):
        raise LayoutError(f"taken for {kind} ({config.family}), {_some(others)} not of floating point numbers")
    if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
        raise LayoutError("its tensors claim more bytes than it has")


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


def read_tokenizer(base: Path) -> bytes | None:
    """A base model's tokenizer as a tokenizer.json; made from vocab.json and merges.txt if need be, None without."""
    file = base / "tokenizer.json"
    if file.is_file():
        if file.stat().st_size > _MAX_TOKENIZER:
            raise LayoutError(f"{base.name}/tokenizer.json is too large for a tokenizer")
        return file.read_bytes()
    if not (base / "vocab.json").is_file() or not (base / "merges.txt").is_file():
        return None
    try:
        return build_tokenizer_json(base, read_added_tokens(base / "tokenizer_config.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise LayoutError(f"{base.name}/vocab.json and merges.txt make no tokenizer ({error})") from error


def load_state(
    module: torch.nn.Module,
    state: dict[str, Tensor | StackedRows],
    path: Path,
    taken_for: str,
    device: torch.device | str = "cpu",
) -> None:
    """Give `module` (built on the meta device or not) its weights, each in the dtype the module was built with.

    Each tensor goes from the file to the device by itself. On the CPU those already in that dtype are taken as they
    are, memory-mapped. Raises CheckpointError naming `path` when
    tensors are missing, unexpected or misshapen.
    """
    expected = module.state_dict()
    check_fit(expected, state, path, taken_for)
    state = {name: tensor.to(device, expected[name].dtype) for name, tensor in state.items()}
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False)


def check_fit(expected: dict[str, Tensor], state: dict[str, Tensor | StackedRows], path: Path, taken_for: str) -> None:
    """Raise CheckpointError unless `state` holds the `expected` tensors in their shapes, and no others."""
    problems = []
    if missing := sorted(expected.keys() - state.keys()):
        problems.append(f"{_some(missing)} missing")
    if unexpected := sorted(state.keys() - expected.keys()):
        problems.append(f"{_some(unexpected)} unexpected")
    misshapen = sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
    if misshapen:
        shapes = f"{str(list(state[misshapen[0]].shape))[:80]} instead of {list(expected[misshapen[0]].shape)}"
        problems.append(f"{_some(misshapen)} misshapen ({shapes})")
    if problems:
        raise CheckpointError(f"{path.name} does not fit {taken_for}: {'; '.join(problems)}.")


def _some(names: list[str]) -> str:
    shown = ", ".join(re.sub(r"\s", " ", name)[:80] for name in names[:3])
    return (
        f"{shown} and {len(names) - 3} more tensors are"
        if len(names) > 3
        else f"{shown} {'are' if names[1:] else 'is'}"
    )
