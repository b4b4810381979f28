"""The configuration of a model in the published layout: sizes from its tensors, the rest from the files beside it."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ..config import (
    LATENT_CHANNELS,
    AutoencoderConfig,
    FlowHeadConfig,
    GeneratorConfig,
    ModelConfig,
    PixelDecoderConfig,
)
from ..families import family, recognise_published
from .config_check import check_config
from .layout import published_names
from .sizes import LayoutError, Sizes, section

_MAX_JSON = 16 << 20
"""Bytes of a configuration file."""


def read_config(tensors: dict[str, Tensor], folder: Path) -> ModelConfig:
    """Configuration of a published state dict.

    Widths and layer counts come from the tensors; head counts, window layers and rotary base from base/config.json in
    `folder`, or, where that is absent, from the published model of the same widths. Raises LayoutError when the tensors
    are not a VGT model's, or a number is one that no model can have.
    """
    full = any(name.startswith(("lmm.", "vgt_ae.")) for name in tensors)
    base = read_json(folder / "base" / "config.json")
    name = recognise_published(tensors, base).name
    sizes = Sizes(published_names(tensors, name))
    if not sizes.has("autoencoder.down_mlp.3.weight") or not sizes.has("autoencoder.pixel_decoder.conv_in.weight"):
        raise LayoutError("it is not a VGT model (it has a vision tower, but no latent projection or pixel decoder)")
    try:
        config = _read_config(sizes, name, full, base, folder)
        check_config(config)
    except LayoutError as error:
        raise LayoutError(f"taken for a {'full VGT model' if full else 'VGT-AE'} ({name}), {error}") from error
    except ValueError as error:
        raise LayoutError(f"by its tensors and base/config.json and dc_ae/config.json beside it, {error}") from error
    return config


def _read_config(sizes: Sizes, name: str, full: bool, base: dict, folder: Path) -> ModelConfig:
    """sizes: of the tensors under our names; base: the base model's config.json."""
    channels = sizes.shape("autoencoder.down_mlp.3.weight", 2)[0]
    if channels != LATENT_CHANNELS:
        raise LayoutError(f"it has latents of {channels} channels; VGT's have {LATENT_CHANNELS}")
    found = family(name)
    autoencoder = AutoencoderConfig(
        vision=found.read_vision(sizes.below("autoencoder.vision_tower."), section(base, "vision_config")),
        semantic_width=sizes.shape("autoencoder.down_mlp.1.weight", 2)[1],
        decoder=_pixel_decoder(sizes.below("autoencoder.pixel_decoder."), read_json(folder / "dc_ae" / "config.json")),
    )
    generator = None
    if full:
        sizes, head = sizes.below("generator."), "flow_head."
        generator = GeneratorConfig(
            found.read_language(sizes.below("language_model."), text_section(base)),
            FlowHeadConfig(sizes.shape(head + "input_proj.weight", 2)[0], sizes.count(head + "blocks.")),
            _query_grid(sizes),
        )
    pad = read_json(folder / "base" / "tokenizer_config.json").get("pad_token") or found.template.pad
    return ModelConfig(name, autoencoder, generator, pad.get("content") if isinstance(pad, dict) else pad)


def text_section(base: dict) -> dict:
    """The language model's part of a base model's config.json: a table of its own, or the whole."""
    return section(base, "llm_config", "text_config") or base


def _pixel_decoder(sizes: Sizes, config: dict) -> PixelDecoderConfig:
    stages = sizes.count("up_blocks.")
    widths, blocks, attention = [], [], []
    kernel = PixelDecoderConfig.kernel
    for stage in range(stages):
        prefix = f"up_blocks.{stage}."
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


def _query_grid(sizes: Sizes) -> int | tuple[int, int]:
    rows, columns = sizes.shape("position_queries.queries", 4)[2:]
    return rows if rows == columns else (rows, columns)


def read_json(path: Path) -> dict:
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
