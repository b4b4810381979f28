"""Base vision-language models in their hub layout: config.json, a tokenizer, *.safetensors. Read, and written.

Qwen2.5-VL and InternVL3, in the names their repositories use; a DC-AE folder may give the pixel decoder its weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import FAMILIES, INTERNVL3, QWEN2_5_VL, InternVisionConfig, LanguageModelConfig, QwenVisionConfig
from ..files.checkpoint import read_tokenizer
from .captioning import mrope_section
from .settings import TrainingError
from .text import IMAGE, PAD, VISION_END, VISION_START

_LANGUAGE = {
    QWEN2_5_VL: ("model.language_model.", "model."),
    INTERNVL3: ("language_model.model.",),
}
_VISION = {
    QWEN2_5_VL: ("model.visual.", "visual."),
    INTERNVL3: ("vision_model.",),
}


@dataclass(frozen=True)
class BaseModel:
    """A base VLM under our module names."""

    family: str
    vision: InternVisionConfig | QwenVisionConfig
    language: LanguageModelConfig
    vision_state: dict[str, Tensor]
    language_state: dict[str, Tensor]
    tokenizer_json: bytes
    pad_token: str


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
        tensors = _read_tensors(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder} is no base model in its hub layout ({error}).") from error
    if tokenizer_json is None:
        raise TrainingError(f"{folder} lacks its tokenizer; add tokenizer.json, or vocab.json and merges.txt.")
    found = {"qwen2_5_vl": QWEN2_5_VL, "internvl_chat": INTERNVL3}.get(config.get("model_type"))
    if found is None or (family is not None and found != family):
        wanted = family or " or ".join(FAMILIES)
        raise TrainingError(f"{folder} holds a model of type {config.get('model_type')!r}; {wanted} is needed.")
    try:
        language = _language_config(config, found)
        vision = _qwen_vision(config) if found == QWEN2_5_VL else _intern_vision(config)
        depth = min(layers or language.depth, language.depth)
        language_state = _language_state(_below(tensors, _LANGUAGE[found]), depth)
        language = LanguageModelConfig(**{**language.__dict__, "depth": depth})
        vision_state = _vision_state(tensors, found)
    except KeyError as error:
        raise TrainingError(f"{folder} lacks {error}, which a base model of {found} has.") from error
    return BaseModel(found, vision, language, vision_state, language_state, tokenizer_json, PAD)


def save_base(folder: Path, vision: QwenVisionConfig, language: LanguageModelConfig, vlm, tokenizer_json: str) -> None:
    """Write a Qwen2.5-VL of our modules in the hub layout; `transformers` reads it too."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    ids = Tokenizer.from_str(tokenizer_json).token_to_id
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    config = {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "hidden_size": language.width,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_width,
        "intermediate_size": language.mlp_width,
        "vocab_size": language.vocabulary,
        "rope_theta": language.rope_theta,
        "rms_norm_eps": language.eps,
        "max_position_embeddings": language.max_positions,
        "rope_scaling": {"type": "mrope", "mrope_section": mrope_section(language.head_width)},
        "tie_word_embeddings": True,
        "image_token_id": ids(IMAGE),
        "vision_start_token_id": ids(VISION_START),
        "vision_end_token_id": ids(VISION_END),
        "bos_token_id": ids(PAD),
        "eos_token_id": ids(PAD),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_size": vision.width,
            "depth": vision.depth,
            "num_heads": vision.heads,
            "intermediate_size": vision.mlp_width,
            "out_hidden_size": language.width,
            "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_attention),
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for name, tensor in vlm.vision_tower.state_dict().items():
        if name == "patch_embed.proj.weight":
            tensor = tensor.unflatten(1, (3, 2, 14, 14))
        tensors["visual." + name] = tensor.contiguous()
    heads = [language.heads * language.head_width] + [language.kv_heads * language.head_width] * 2
    for name, tensor in vlm.language_model.state_dict().items():
        if ".qkv_proj." in name:
            for part, rows in zip("qkv", tensor.split(heads)):
                tensors["model." + name.replace("qkv_proj", f"{part}_proj")] = rows.contiguous()
        elif ".gate_up_proj." in name:
            for part, rows in zip(("gate", "up"), tensor.chunk(2)):
                tensors["model." + name.replace("gate_up_proj", f"{part}_proj")] = rows.contiguous()
        else:
            tensors["model." + name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_pixel_decoder(decoder, folder: str | Path) -> None:
    """Fill a pixel decoder from a DC-AE folder in `diffusers`' layout. Raises TrainingError if it does not fit."""
    try:
        tensors = _below(_read_tensors(Path(folder)), ("decoder.",))
        decoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except KeyError as error:
        raise TrainingError(f"{folder} lacks the .safetensors of a DC-AE decoder; set dc_ae to its folder.") from error
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


def _below(tensors: dict[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    for prefix in prefixes:
        found = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if found:
            return found
    raise KeyError(prefixes[0])


def _language_state(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    state = {name: tensors[name].float() for name in ("embed_tokens.weight", "norm.weight")}
    for layer in range(depth):
        at = f"layers.{layer}."
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            state[at + name] = tensors[at + name].float()
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            state[at + name] = tensors[at + name].float()
        for kind in ("weight", "bias"):
            parts = [tensors[f"{at}self_attn.{p}_proj.{kind}"].float() for p in "qkv"]
            state[f"{at}self_attn.qkv_proj.{kind}"] = torch.cat(parts)
        parts = [tensors[f"{at}mlp.{p}_proj.weight"].float() for p in ("gate", "up")]
        state[at + "mlp.gate_up_proj.weight"] = torch.cat(parts)
    return state


def _vision_state(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    state = {name: tensor.float() for name, tensor in _below(tensors, _VISION[family]).items()}
    if family == QWEN2_5_VL:
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
        return state
    renamed = {}
    for name, tensor in state.items():
        renamed[name.removeprefix("embeddings.").removeprefix("encoder.")] = tensor
    renamed.update({f"mlp1.{name}": tensor.float() for name, tensor in _below(tensors, ("mlp1.",)).items()})
    return renamed


def _language_config(config: dict, family: str) -> LanguageModelConfig:
    text = config["llm_config"] if family == INTERNVL3 else config.get("text_config", config)
    heads = text["num_attention_heads"]
    return LanguageModelConfig(
        width=text["hidden_size"],
        depth=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text["num_key_value_heads"],
        mlp_width=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        head_width=text.get("head_dim") or text["hidden_size"] // heads,
        rope_theta=float(text.get("rope_theta", 1e6)),
        eps=text.get("rms_norm_eps", 1e-6),
        max_positions=text.get("max_position_embeddings", 32768),
    )


def _qwen_vision(config: dict) -> QwenVisionConfig:
    vision = config["vision_config"]
    return QwenVisionConfig(
        width=vision["hidden_size"],
        depth=vision.get("depth", 32),
        heads=vision.get("num_heads", 16),
        mlp_width=vision.get("intermediate_size", 3420),
        window=vision.get("window_size", 112),
        full_attention=tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
    )


def _intern_vision(config: dict) -> InternVisionConfig:
    vision = config["vision_config"]
    return InternVisionConfig(
        width=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp_width=vision["intermediate_size"],
        grid=vision["image_size"] // vision["patch_size"],
    )
