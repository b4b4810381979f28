"""The configuration of a model in the published layout: sizes from its tensors, the rest from the files beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from torch import Tensor

from ..config import (
    INTERNVL3,
    LATENT_CHANNELS,
    QWEN2_5_VL,
    AutoencoderConfig,
    FlowHeadConfig,
    GeneratorConfig,
    InternVisionConfig,
    LanguageModelConfig,
    ModelConfig,
    PixelDecoderConfig,
    QwenVisionConfig,
)
from .config_check import MAX_LAYERS, check_config
from .layout import LayoutError, language_prefix

_MAX_JSON = 16 << 20
"""Bytes of a configuration file."""


def read_config(tensors: dict[str, Tensor], folder: Path) -> ModelConfig:
    """Configuration of a published state dict.

    Widths and layer counts come from the tensors; head counts, window layers and rotary base from base/config.json in
    `folder`, or, where that is absent, from the published model of the same widths. Raises LayoutError when the tensors
    are not a VGT model's, or a number is one that no model can have.
    """
    full = any(name.startswith(("lmm.", "vgt_ae.")) for name in tensors)
    sizes = _Sizes(tensors, "vgt_ae." if full else "")
    if sizes.has("encoder.embeddings.patch_embedding.weight"):
        family = INTERNVL3
    elif sizes.has("encoder.patch_embed.proj.weight"):
        family = QWEN2_5_VL
    else:
        raise LayoutError("it is not a VGT model (no vision tower of InternVL3 or Qwen2.5-VL in it)")
    if not sizes.has("down_mlp.3.weight") or not sizes.has("decoder.conv_in.weight"):
        raise LayoutError("it is not a VGT model (it has a vision tower, but no latent projection or pixel decoder)")
    try:
        config = _read_config(sizes, family, tensors if full else None, folder)
        check_config(config)
    except LayoutError as error:
        raise LayoutError(f"taken for a {'full VGT model' if full else 'VGT-AE'} ({family}), {error}") from error
    except ValueError as error:
        raise LayoutError(f"by its tensors and base/config.json and dc_ae/config.json beside it, {error}") from error
    return config


def _read_config(sizes: _Sizes, family: str, tensors: dict[str, Tensor] | None, folder: Path) -> ModelConfig:
    """`sizes` of the VGT-AE; `tensors` of a full model, None for a tokenizer alone."""
    channels = sizes.shape("down_mlp.3.weight", 2)[0]
    if channels != LATENT_CHANNELS:
        raise LayoutError(f"it has latents of {channels} channels; VGT's have {LATENT_CHANNELS}")
    base = _read_json(folder / "base" / "config.json")
    vision = (_intern_vision if family == INTERNVL3 else _qwen_vision)(sizes, _section(base, "vision_config"))
    autoencoder = AutoencoderConfig(
        vision=vision,
        semantic_width=sizes.shape("down_mlp.1.weight", 2)[1],
        decoder=_pixel_decoder(sizes, _read_json(folder / "dc_ae" / "config.json")),
    )
    generator = None
    if tensors is not None:
        section = "llm_config" if family == INTERNVL3 else "text_config"
        language = _section(base, section) if section in base else base
        generator = _generator(_Sizes(tensors, ""), language_prefix(tensors, family), language)
    pad = _read_json(folder / "base" / "tokenizer_config.json").get("pad_token") or "<|endoftext|>"
    return ModelConfig(family, autoencoder, generator, pad.get("content") if isinstance(pad, dict) else pad)


class _Sizes:
    """Shapes and layer counts of a state dict."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str):
        self._tensors, self._prefix = tensors, prefix

    def has(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        if not self.has(name):
            raise LayoutError(f"it lacks the tensor {self._prefix}{name}")
        shape = tuple(self._tensors[self._prefix + name].shape)
        if len(shape) != dimensions:
            raise LayoutError(f"the tensor {self._prefix}{name} has {len(shape)} dimensions instead of {dimensions}")
        return shape

    def count(self, name: str) -> int:
        """How many layers `name` has: names go on with an index. As many as there are, whatever the highest says."""
        start = self._prefix + name
        found = {key[len(start) :].split(".")[0] for key in self._tensors if key.startswith(start)}
        count = sum(index.isdecimal() for index in found)
        if count > MAX_LAYERS:
            raise LayoutError(f"it has {count} layers {start}…; no model has so many")
        return count


def _intern_vision(sizes: _Sizes, config: dict) -> InternVisionConfig:
    width = sizes.shape("encoder.embeddings.patch_embedding.weight", 4)[0]
    places = sizes.shape("encoder.embeddings.position_embedding", 3)[1] - 1
    return InternVisionConfig(
        width=width,
        depth=sizes.count("encoder.encoder.layers."),
        heads=_heads(config, "num_attention_heads", width, InternVisionConfig),
        mlp_width=sizes.shape("encoder.encoder.layers.0.mlp.fc1.weight", 2)[0],
        grid=math.isqrt(max(places, 0)),
    )


def _qwen_vision(sizes: _Sizes, config: dict) -> QwenVisionConfig:
    width = sizes.shape("encoder.patch_embed.proj.weight", 5)[0]
    return QwenVisionConfig(
        width=width,
        depth=sizes.count("encoder.blocks."),
        heads=_heads(config, "num_heads", width, QwenVisionConfig),
        mlp_width=sizes.shape("encoder.blocks.0.mlp.gate_proj.weight", 2)[0],
        window=config.get("window_size", QwenVisionConfig.window),
        full_attention=_tuple(config.get("fullatt_block_indexes", QwenVisionConfig.full_attention)),
    )


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _heads(config: dict, key: str, width: int, published) -> int:
    if key in config:
        return config[key]
    if width != published.width:
        raise LayoutError(
            "its widths are of no published model, and base/config.json, which tells its heads, is not there"
        )
    return published.heads


def _pixel_decoder(sizes: _Sizes, config: dict) -> PixelDecoderConfig:
    stages = sizes.count("decoder.up_blocks.")
    widths, blocks, attention = [], [], []
    kernel = PixelDecoderConfig.kernel
    for stage in range(stages):
        prefix = f"decoder.up_blocks.{stage}."
        upsamples = stage < stages - 1
        blocks.append(sizes.count(prefix) - upsamples)
        first = f"{prefix}{int(upsamples)}."
        attention.append(sizes.has(first + "attn.to_q.weight"))
        if attention[-1]:
            widths.append(sizes.shape(first + "attn.to_out.weight", 2)[0])
        else:
            widths.append(sizes.shape(first + "conv2.weight", 4)[0])
        branch = first + "attn.to_qkv_multiscale.0.proj_in.weight"
        if sizes.has(branch):
            kernel = sizes.shape(branch, 4)[-1]
    return PixelDecoderConfig(
        tuple(widths),
        tuple(blocks),
        tuple(attention),
        config.get("attention_head_dim", PixelDecoderConfig.head_width),
        kernel,
    )


_PUBLISHED_HEADS = {896: (14, 2), 1536: (12, 2), 2048: (16, 2)}
"""Language model width → heads, key/value heads: Qwen2.5-0.5B, -1.5B and -3B."""


def _generator(sizes: _Sizes, prefix: str, config: dict) -> GeneratorConfig:
    vocabulary, width = sizes.shape(prefix + "embed_tokens.weight", 2)
    if "num_attention_heads" in config:
        heads, kv_heads = (
            config["num_attention_heads"],
            config.get("num_key_value_heads", config["num_attention_heads"]),
        )
    elif width in _PUBLISHED_HEADS:
        heads, kv_heads = _PUBLISHED_HEADS[width]
    else:
        raise LayoutError(
            "its widths are of no published model, and base/config.json, which tells its heads, is not there"
        )
    rows = sizes.shape(prefix + "layers.0.self_attn.q_proj.weight", 2)[0]
    if type(heads) is not int or heads < 1 or rows % heads:
        raise LayoutError(f"the {str(heads)[:40]} heads of base/config.json do not divide the {rows} rows of q_proj")
    language = LanguageModelConfig(
        width=width,
        depth=sizes.count(prefix + "layers."),
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=sizes.shape(prefix + "layers.0.mlp.gate_proj.weight", 2)[0],
        vocabulary=vocabulary,
        head_width=rows // heads,
        rope_theta=config.get("rope_theta", LanguageModelConfig.rope_theta),
        eps=config.get("rms_norm_eps", LanguageModelConfig.eps),
        max_positions=config.get("max_position_embeddings", LanguageModelConfig.max_positions),
    )
    head = "image_head.net."
    return GeneratorConfig(
        language,
        FlowHeadConfig(sizes.shape(head + "input_proj.weight", 2)[0], sizes.count(head + "res_blocks.")),
        sizes.shape("adaptive_metaquery.max_metaquery", 4)[-1],
    )


def _section(config: dict, name: str) -> dict:
    section = config.get(name, {})
    if not isinstance(section, dict):
        raise LayoutError(f"base/config.json beside it holds a {name} that is no configuration")
    return section


def _read_json(path: Path) -> dict:
    where = f"{path.parent.name}/{path.name} beside it"
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_JSON:
        raise LayoutError(f"{where} is too large for a configuration")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{where} is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise LayoutError(f"{where} is no configuration")
    return data
