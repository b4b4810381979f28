"""Reads and writes base vision-language models in their hub layout: config.json, a tokenizer, *.safetensors.

What their tensors are called is told in vgt/families; a DC-AE folder may give the pixel decoder its weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import AutoencoderConfig, GeneratorConfig, LanguageModelConfig, ModelConfig
from ..families import family as find_family
from ..families import names, recognise_base
from ..families._family import BaseParts
from ..files.checkpoint import CheckpointError, check_fit
from ..files.config_check import check_config
from ..files.layout import base_names, hub_name, stack_language, stacked_language
from ..files.published_config import text_section
from ..files.reading import read_tokenizer
from ..files.sizes import Sizes, section
from .settings import TrainingError


@dataclass(frozen=True)
class BaseModel(BaseParts):
    """A base VLM under our module names, its weights in float32."""

    family: str
    tokenizer_json: bytes

    @property
    def token_pixels(self) -> int:
        """Side in pixels of a token."""
        return self.vision.token_pixels


def load_base(folder: str | Path, family: str | None = None, layers: int | None = None) -> BaseModel:
    """Read a base model.

    Args:
        family: what the caller trains; another one is refused.
        layers: keep only the first layers of the language model (VGT-Qwen2.5-VL-2B keeps some of 3B's).

    Raises TrainingError when the folder is no base model of that family.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer_json = read_tokenizer(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder} is no base model in its hub layout ({error}).") from error
    if tokenizer_json is None:
        raise TrainingError(f"{folder} lacks its tokenizer; add tokenizer.json, or vocab.json and merges.txt.")
    if family is not None and (family not in names() or not find_family(family).reads_base(config)):
        raise TrainingError(f"{folder} holds a model of type {config.get('model_type')!r}; {family} is needed.")
    try:
        found = recognise_base(config) if family is None else find_family(family)
        parts = found.load_base(folder, config, layers) or read_base(_read_tensors(folder), config, found.name, layers)
    except CheckpointError as error:
        raise TrainingError(f"{folder}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder} is no base model in its hub layout ({error}).") from error
    except ValueError as error:
        raise TrainingError(f"{folder} cannot be taken for a base model: {error}.") from error
    return BaseModel(**vars(parts), family=found.name, tokenizer_json=tokenizer_json)


def read_base(tensors: dict[str, Tensor], config: dict, name: str, layers: int | None = None) -> BaseParts:
    """Make a base model of its tensors and config.json.

    Raises ValueError for what no model of the family can have, CheckpointError for missing and misshapen tensors.
    """
    found = find_family(name)
    ours = base_names(tensors, name)
    sizes = Sizes(ours)
    vision = found.read_vision(sizes.below("autoencoder.vision_tower."), section(config, "vision_config"))
    language = found.read_language(sizes.below("generator.language_model."), text_section(config))
    check_config(ModelConfig(name, AutoencoderConfig(vision, language.width), GeneratorConfig(language)))
    language = replace(language, depth=min(layers or language.depth, language.depth))
    stack_language(ours, language)
    kept = tuple(f"layers.{layer}." for layer in range(language.depth))
    states = []
    for part, module in (
        ("autoencoder.vision_tower.", vision.build(language.width, device="meta")),
        ("generator.language_model.", found.language_model(language, device="meta")),
    ):
        state = {key[len(part) :]: tensor for key, tensor in ours.items() if key.startswith(part)}
        if part.startswith("generator"):
            state = {key: value for key, value in state.items() if key.startswith(kept) or "layers." not in key}
        check_fit(module.state_dict(), state, Path("It"), f"a base model of {found.title}")
        states.append({key: tensor.to("cpu", torch.float32) for key, tensor in state.items()})
    return BaseParts(vision, language, *states, found.template.pad)


def save_base(folder: Path, name: str, vision, language: LanguageModelConfig, vlm, tokenizer_json: str) -> None:
    """Write a base model of the family `name` in its hub layout; `transformers` reads it too.

    vlm: has a `vision_tower` and a `language_model`, of the sizes given.
    """
    from tokenizers import Tokenizer

    found = find_family(name)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    config = found.hub_config(vision, language, {token: tokenizer.token_to_id(token) for token in found.special_tokens})
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    ours = {f"vision_tower.{key}": tensor for key, tensor in vlm.vision_tower.state_dict().items()}
    ours |= {f"language_model.{key}": tensor for key, tensor in _unstacked(vlm.language_model, language).items()}
    tensors = {hub_name(key, name): found.write_tensor(key, tensor, vision) for key, tensor in ours.items()}
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _unstacked(model, language: LanguageModelConfig) -> dict[str, Tensor]:
    """Cut the language model's tensors into the parts that base models have them in."""
    state = model.state_dict()
    heads = [language.heads * language.head_width] + [language.kv_heads * language.head_width] * 2
    for whole, parts in stacked_language(language):
        if whole in state:
            rows = state.pop(whole).split(heads if len(parts) == 3 else language.mlp_width)
            state.update(zip(parts, rows))
    return state


def load_pixel_decoder(decoder, folder: str | Path) -> None:
    """Fill a pixel decoder from a DC-AE folder in `diffusers`' layout. Raises TrainingError if it does not fit."""
    try:
        tensors = {key[8:]: value for key, value in _read_tensors(Path(folder)).items() if key.startswith("decoder.")}
        if not tensors:
            raise TrainingError(f"{folder} lacks the .safetensors of a DC-AE decoder; set dc_ae to its folder.")
        decoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder} cannot be read as a DC-AE decoder ({error}).") from error
    except RuntimeError as error:  # which lists every tensor
        first = str(error).splitlines()[:2]
        raise TrainingError(f"{folder} holds a DC-AE decoder of another size ({' '.join(first)}).") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    return tensors
