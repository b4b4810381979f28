"""LoRA files: what their names mean in a generator, whether they fit it, and what they add to its weights.

Ours are safetensors with, for each linear layer, `generator.NAME.lora_up.weight`, `.lora_down.weight` and `.alpha`, and
the tensor `vgt.lora`: JSON as uint8 that names the base. It is a tensor, and no metadata, because a host's own nodes
save the tensors alone. Files of others may name the parts of a joined matrix (q_proj, gate_proj …): they are slices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import GeneratorConfig
from .fingerprint import fingerprint

BASE_KEY = "vgt.lora"

_PEFT = "base_model.model."
_PREFIXES = ("generator.", "", "diffusion_model.", "transformer.", _PEFT)
_FLAT_PREFIXES = ("lora_unet_", "lycoris_", "lora_transformer_", "lora_generator_")
"""Where all dots of a name are underscores."""
_LANGUAGE_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "lmm.language_model.")
"""What a LoRA of the base model's language model calls it."""
_OF_A_LAYER = re.compile(
    r"(\.(lora|hada|lokr|oft|boft|glora|alpha|dora|diff|w_norm|b_norm|set_weight|[ab][12]\.)|_lora\.)"
)
_PAIRS = (
    ("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"), ("lora.up.weight", "lora.down.weight"),
)  # fmt: skip
_OTHERS = {
    r"lora_te|lora_unet_(input|down|output|up|mid)|^(unet|text_encoder)\.|to_[qkv]\.": "Stable Diffusion or SDXL",
    r"(double|single)_(transformer_)?blocks": "Flux",
    r"joint_blocks": "Stable Diffusion 3",
}
"""What the names of other models' LoRAs look like."""


class LoraError(ValueError):
    """A LoRA cannot be used on a model; the message names both."""

    __module__ = "vgt"  # where it is imported from; the host shows this in its log and API


@dataclass(frozen=True)
class Place:
    """A weight of a generator, or some of its rows."""

    name: str
    """Of the parameter, inside the generator."""
    shape: tuple[int, int]
    """Of the rows."""
    first: int | None = None
    """The first of the rows; None: it is the whole weight."""


@dataclass(frozen=True)
class Base:
    """What a LoRA was trained on."""

    model: str
    """The file's name, for messages."""
    family: str
    weights: str
    """Tells the weights apart: of the position queries, which every generator learns for itself."""
    steps: int = 0
    """Of training that the LoRA has seen."""

    @classmethod
    def of(cls, model: str, family: str, queries: Mapping[str, Tensor]) -> Base:
        """queries: the position queries' grids, in whatever precision."""
        kept = {name.rpartition(".")[2]: tensor.detach().to(torch.bfloat16) for name, tensor in queries.items()}
        return cls(model, family, fingerprint(kept)[:16])

    def tensor(self) -> Tensor:
        """uint8, for BASE_KEY."""
        return torch.frombuffer(bytearray(json.dumps(asdict(self)).encode()), dtype=torch.uint8).clone()


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a LoRA file. Raises FileNotFoundError, and LoraError for a file that is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no LoRA at {path}; check the name.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise LoraError(f"{path.name} is no LoRA: it is truncated, damaged or not a safetensors file.") from error


def save_lora(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a LoRA; the file appears under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def base_of(tensors: Mapping[str, Tensor]) -> Base | None:
    """What the LoRA says that it was trained on; None where it says nothing that can be read."""
    try:
        return Base(**json.loads(tensors[BASE_KEY].numpy().tobytes()))
    except (KeyError, TypeError, ValueError):
        return None


def places(config: GeneratorConfig, shapes: Mapping[str, torch.Size]) -> dict[str, Place]:
    """What LoRA files may call a generator's weights, without their endings → the weight, or the rows of it.

    shapes: of the generator's parameters, by their names inside it.
    """
    found = {}
    for parameter, shape in shapes.items():
        name, _, kind = parameter.rpartition(".")
        if kind != "weight" or len(shape) != 2 or name.endswith("embed_tokens"):
            continue
        whole = {name: Place(parameter, tuple(shape))}
        whole |= {name.replace(joined, part): place for joined, part, place in _parts(parameter, shape, config)}
        for own, place in whole.items():
            spelled = {prefix + own for prefix in _PREFIXES}
            spelled |= {prefix + own.replace(".", "_") for prefix in _FLAT_PREFIXES}
            if own.startswith("language_model."):
                bare = own.removeprefix("language_model.")
                spelled |= {
                    f"{peft}{prefix}{bare}" for peft in ("", "base_model.model.") for prefix in _LANGUAGE_PREFIXES
                }
            found |= dict.fromkeys(spelled, place)
    return found


def _parts(parameter: str, shape, config: GeneratorConfig):
    """(joined name, part's name, place) of the parts of a joined matrix of the language model."""
    language = config.language
    heads = [language.heads, language.kv_heads, language.kv_heads]
    for joined, names, rows in (
        ("qkv_proj", ("q_proj", "k_proj", "v_proj"), [count * language.head_width for count in heads]),
        ("gate_up_proj", ("gate_proj", "up_proj"), [shape[0] // 2] * 2),
    ):
        if parameter.endswith(f".{joined}.weight"):
            for index, part in enumerate(names):
                yield joined, part, Place(parameter, (rows[index], shape[1]), sum(rows[:index]))


@dataclass(frozen=True)
class Fit:
    """How a LoRA fits a generator."""

    tensors: dict[str, Tensor]
    """Those that fit."""
    layers: dict[str, Place]
    """The layers that fit, as the file calls them."""
    total: int
    """Layers of the file."""
    warning: str | None
    """What a person should know, one sentence."""


def fit(tensors: Mapping[str, Tensor], known: Mapping[str, Place], name: str, own: Base) -> Fit:
    """How much of a LoRA fits a model.

    known: of `places`; name: the LoRA's, own: the model's, for messages. Raises LoraError, which names both, for a LoRA
    of another family, and for one of which nothing fits.
    """
    base = base_of(tensors)
    if base is not None and base.family != own.family:
        raise LoraError(
            f"{name} is a LoRA of {base.model} ({base.family}), not of {own.model} ({own.family}); choose one that was "
            "trained on this model."
        )
    layers: dict[str, list[str]] = {}
    for key in tensors:
        if key != BASE_KEY:
            layers.setdefault(_OF_A_LAYER.split(key)[0], []).append(key)
    fitting, why = {}, ""
    for layer in layers:
        if layer in known:
            shape = _shape(tensors, layer)
            if shape is None or shape == known[layer].shape:
                fitting[layer] = known[layer]
            else:
                here = known[layer].shape
                why = f" ({layer} takes {shape[1]} numbers to {shape[0]}, there it is {here[1]} to {here[0]})"
    if not fitting:
        of = f"of {base.model}" if base else f"of {_other(layers)}"
        raise LoraError(
            f"{name} is a LoRA {of} and fits no layer of {own.model}{why}; choose one that was trained on this model."
        )
    warning = None
    if len(fitting) < len(layers):
        of = f", which is of {base.model}," if base else ""
        warning = (
            f"{len(fitting)} of the {len(layers)} layers of {name}{of} fit {own.model}; the others are left out{why}."
        )
    elif base is not None and base.weights != own.weights:
        warning = f"{name} was trained on other weights ({base.model}) than those of {own.model}; it may do less there."
    kept = {key: tensors[key] for layer in fitting for key in layers[layer]}
    return Fit(kept, fitting, len(layers), warning)


def _other(layers) -> str:
    found = (model for pattern, model in _OTHERS.items() if any(re.search(pattern, layer) for layer in layers))
    return next(found, "another model")


def _shape(tensors: Mapping[str, Tensor], layer: str) -> tuple[int, int] | None:
    """(rows, columns) that a LoRA or LoHa of a layer makes; None for what does not say."""
    for up, down in (*_PAIRS, ("hada_w1_a", "hada_w1_b")):
        if f"{layer}.{up}" in tensors and f"{layer}.{down}" in tensors:
            return tensors[f"{layer}.{up}"].shape[0], tensors[f"{layer}.{down}"].shape[-1]
    return None


def merge(fitting: Fit, strength: float, weight_of, name: str) -> dict[str, Tensor]:
    """The weights that change, by their names in the generator: weight + strength · alpha / rank · up · down.

    weight_of: name → the weight, [out, in]; the sum is made in float32 and given in the weight's dtype. Raises
    LoraError for what is no plain LoRA.
    """
    changed: dict[str, Tensor] = {}
    dtypes = {}
    for layer, place in fitting.layers.items():
        found = [(f"{layer}.{up}", f"{layer}.{down}") for up, down in _PAIRS if f"{layer}.{up}" in fitting.tensors]
        if not found or f"{layer}.dora_scale" in fitting.tensors:
            raise LoraError(f"{name} is no plain LoRA (see {layer}); VGT Load LoRA applies other kinds, in ComfyUI.")
        up, down = (fitting.tensors[key] for key in found[0])
        alpha = fitting.tensors.get(f"{layer}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        if place.name not in changed:
            weight = weight_of(place.name)
            dtypes[place.name] = weight.dtype
            changed[place.name] = weight.detach().to(torch.float32, copy=True)
        rows = changed[place.name]
        rows = rows if place.first is None else rows.narrow(0, place.first, place.shape[0])
        rows += (strength * scale) * (up.to(rows).flatten(1) @ down.to(rows).flatten(1))
    return {name: weight.to(dtypes[name]) for name, weight in changed.items()}
