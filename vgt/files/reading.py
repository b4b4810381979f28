"""Reading a model file of any format, and converting it to a single file.

Formats: full AR checkpoints and tokenizers as published or self-trained (.pth or .safetensors beside base/ and dc_ae/),
the single file (single_file.py), and a distilled head's file (head_file.py).

Nothing a pickle names is ever run (torch_file.py). Weights stay memory-mapped until a module takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ..config import ModelConfig
from ..sampling import SamplingSettings, default_side
from .checkpoint import Checkpoint, CheckpointError, check_fit, some
from .head_file import HEAD_KEY, read_head
from .layout import StackedRows, to_our_names
from .published_config import read_config
from .single_file import CONFIG_KEY, from_single_file, save_checkpoint
from .sizes import LayoutError
from .tokenizer_files import build_tokenizer_json, read_added_tokens
from .torch_file import TorchFileError, read_torch_file

_TORCH_SUFFIXES = {".pth", ".pt", ".bin", ".ckpt"}
_SUFFIXES = _TORCH_SUFFIXES | {".safetensors"}
_MAX_TOKENIZER = 256 << 20
"""Bytes of a tokenizer.json."""


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
    if path.suffix.lower() == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        if HEAD_KEY in metadata:
            return read_head(path, metadata, tensors, lambda name: _model_of(path, name, tokenizer_fallback, find))
        if CONFIG_KEY in metadata:
            checkpoint = from_single_file(path, metadata, tensors)
            _check_tensors(checkpoint.tensors, checkpoint.config, path)
            recommended = _with_size(checkpoint.recommended, checkpoint.config)
            return replace(checkpoint, recommended=recommended)
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


def _check_tensors(tensors: dict[str, Tensor | StackedRows], config: ModelConfig, path: Path) -> None:
    """Raise LayoutError for tensors of no part of the model, and for such as would need memory that no file filled."""
    parts = ("autoencoder.", "generator.") if config.generator else ("autoencoder.",)
    kind = "a full VGT model" if config.generator else "a VGT-AE"
    if unexpected := sorted(name for name in tensors if not name.startswith(parts)):
        raise LayoutError(f"taken for {kind} ({config.family}), {some(unexpected)} unexpected")
    if others := sorted(name for name in tensors if not tensors[name].dtype.is_floating_point):
        raise LayoutError(f"taken for {kind} ({config.family}), {some(others)} not of floating point numbers")
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
