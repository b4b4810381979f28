"""The published layout: what its tensors are called, and what its configuration files say (VGT.md, section 4)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from .config import (
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

_LANGUAGE = {INTERNVL3: "lmm.language_model.model.", QWEN2_5_VL: "lmm.language_model."}
_LANGUAGE_COPY = "lmm.model.language_model."
"""Qwen2.5-VL's language model appears a second time under this name."""

_UNUSED = re.compile(
    r"lmm\..*lm_head\.|lmm\.(model\.)?(visual|vision_model|mlp1)\.|(vgt_ae\.)?(teacher|teacher_mlp1|loss|discriminator)\."
    r"|(vgt_ae\.)?vit_(mean|std)$|image_head\.(net\.)?repa_projector\.|dinov3_extractor\."
)
"""Tensors of training, or of parts of the base model that VGT does not use."""

_RENAMES = [
    (r"encoder\.embeddings\.", "autoencoder.vision_tower."),
    (r"encoder\.encoder\.layers\.", "autoencoder.vision_tower.layers."),
    (r"encoder\.", "autoencoder.vision_tower."),
    (r"mlp1\.", "autoencoder.vision_tower.mlp1."),
    (r"decoder\.", "autoencoder.pixel_decoder."),
    (r"(?=down_blocks\.|down_mlp\.)", "autoencoder."),
    (r"adaptive_metaquery\.max_metaquery$", "generator.position_queries.queries"),
    (r"adaptive_metaquery\.pos_encoding\.grid_embed$", "generator.position_queries.positions"),
    (r"image_head\.net\.time_embed\.mlp\.", "generator.flow_head.time_embed."),
    (r"image_head\.net\.res_blocks\.", "generator.flow_head.blocks."),
    (r"image_head\.net\.final_layer\.linear\.", "generator.flow_head.output_proj."),
    (r"image_head\.net\.", "generator.flow_head."),
    (r"(?=image_in_projector\.|image_out_projector\.)", "generator."),
]


class LayoutError(ValueError):
    """The tensors are not those of a VGT model, or lack what is needed to tell which."""


class Joined:
    """Tensors that are rows of one matrix. They are put together when asked for, so that a file's weights and their
    joined copy are never in memory at once."""

    def __init__(self, parts: list[Tensor]):
        self._parts = parts
        self.shape = torch.Size((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))

    def to(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([part.to(dtype) for part in self._parts])

    def contiguous(self) -> Tensor:
        return torch.cat(self._parts)


# --- names -------------------------------------------------------------------------------------------------------


def to_our_names(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor | Joined]:
    """Rename a published state dict, drop what is unused, and join what our modules hold as one matrix.

    Names that nothing here knows are kept, for the loader to report.
    """
    language = _language_prefix(tensors, config.family)
    renamed = {}
    for name, tensor in tensors.items():
        if _UNUSED.match(name) or (name.startswith(_LANGUAGE_COPY) and language != _LANGUAGE_COPY):
            continue
        if name.startswith(language):
            renamed["generator.language_model." + name[len(language) :]] = tensor
        else:
            renamed[_rename(name)] = tensor
    patches = "autoencoder.vision_tower.patch_embed.proj.weight"
    if patches in renamed:
        renamed[patches] = renamed[patches].flatten(1)  # a convolution whose stride is its kernel is a matrix
    if config.generator:
        for layer in range(config.generator.language.depth):
            prefix = f"generator.language_model.layers.{layer}."
            for kind in ("weight", "bias"):
                _join(
                    renamed,
                    prefix + "self_attn.qkv_proj." + kind,
                    [f"{prefix}self_attn.{p}_proj.{kind}" for p in "qkv"],
                )
            _join(renamed, prefix + "mlp.gate_up_proj.weight", [f"{prefix}mlp.{p}_proj.weight" for p in ("gate", "up")])
        head = "generator.flow_head."
        parts = [f"{head}blocks.{block}." for block in range(config.generator.flow_head.depth)] + [
            f"{head}final_layer."
        ]
        for kind in ("weight", "bias"):
            _join(renamed, f"{head}modulation.{kind}", [f"{part}adaLN_modulation.1.{kind}" for part in parts])
    return renamed


def _rename(name: str) -> str:
    bare = name.removeprefix("vgt_ae.")
    for pattern, replacement in _RENAMES:
        new, found = re.subn("^" + pattern, replacement, bare)
        if found:
            return new
    return name


def _join(tensors: dict[str, Tensor | Joined], whole: str, parts: list[str]) -> None:
    if all(part in tensors for part in parts):
        tensors[whole] = Joined([tensors.pop(part) for part in parts])


def _language_prefix(tensors: dict[str, Tensor], family: str) -> str:
    prefix = _LANGUAGE[family]
    return prefix if any(name.startswith(prefix) for name in tensors) else _LANGUAGE_COPY


# --- configuration -----------------------------------------------------------------------------------------------


def read_config(tensors: dict[str, Tensor], folder: Path) -> ModelConfig:
    """Configuration of a published state dict.

    Widths and layer counts come from the tensors; head counts, window layers and rotary base from base/config.json in
    `folder`, or, where that is absent, from the published model of the same widths. Raises LayoutError when the tensors
    are not a VGT model's.
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
    channels = sizes.shape("down_mlp.3.weight")[0]
    if channels != LATENT_CHANNELS:
        raise LayoutError(f"its latents have {channels} channels; VGT's have {LATENT_CHANNELS}")

    base = _read_json(folder / "base" / "config.json")
    vision = (_intern_vision if family == INTERNVL3 else _qwen_vision)(sizes, base.get("vision_config", {}))
    autoencoder = AutoencoderConfig(
        vision=vision,
        semantic_width=sizes.shape("down_mlp.1.weight")[1],
        decoder=_pixel_decoder(sizes, _read_json(folder / "dc_ae" / "config.json")),
    )
    generator = None
    if full:
        prefix = _language_prefix(tensors, family)
        language = base.get("llm_config", base) if family == INTERNVL3 else base.get("text_config", base)
        generator = _generator(_Sizes(tensors, ""), prefix, language)
    tokenizer = _read_json(folder / "base" / "tokenizer_config.json")
    pad = tokenizer.get("pad_token") or "<|endoftext|>"
    return ModelConfig(family, autoencoder, generator, pad["content"] if isinstance(pad, dict) else pad)


class _Sizes:
    """Shapes and layer counts of a state dict."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str):
        self._tensors, self._prefix = tensors, prefix

    def has(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        if not self.has(name):
            raise LayoutError(f"it lacks the tensor {self._prefix}{name}")
        return tuple(self._tensors[self._prefix + name].shape)

    def count(self, name: str) -> int:
        """How many layers `name` has: names go on with an index."""
        start = self._prefix + name
        found = {rest.split(".")[0] for key in self._tensors if key.startswith(start) for rest in [key[len(start) :]]}
        return 1 + max((int(index) for index in found if index.isdigit()), default=-1)


def _intern_vision(sizes: _Sizes, config: dict) -> InternVisionConfig:
    width = sizes.shape("encoder.embeddings.patch_embedding.weight")[0]
    places = sizes.shape("encoder.embeddings.position_embedding")[1] - 1
    return InternVisionConfig(
        width=width,
        depth=sizes.count("encoder.encoder.layers."),
        heads=_heads(config, "num_attention_heads", width, InternVisionConfig),
        mlp_width=sizes.shape("encoder.encoder.layers.0.mlp.fc1.weight")[0],
        grid=round(places**0.5),
    )


def _qwen_vision(sizes: _Sizes, config: dict) -> QwenVisionConfig:
    width = sizes.shape("encoder.patch_embed.proj.weight")[0]
    return QwenVisionConfig(
        width=width,
        depth=sizes.count("encoder.blocks."),
        heads=_heads(config, "num_heads", width, QwenVisionConfig),
        mlp_width=sizes.shape("encoder.blocks.0.mlp.gate_proj.weight")[0],
        window=int(config.get("window_size", QwenVisionConfig.window)),
        full_attention=tuple(config.get("fullatt_block_indexes", QwenVisionConfig.full_attention)),
    )


def _heads(config: dict, key: str, width: int, published) -> int:
    if key in config:
        return int(config[key])
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
        widths.append(sizes.shape(first + ("attn.to_out.weight" if attention[-1] else "conv2.weight"))[0])
        branch = first + "attn.to_qkv_multiscale.0.proj_in.weight"
        if sizes.has(branch):
            kernel = sizes.shape(branch)[-1]
    return PixelDecoderConfig(
        tuple(widths),
        tuple(blocks),
        tuple(attention),
        int(config.get("attention_head_dim", PixelDecoderConfig.head_width)),
        kernel,
    )


_PUBLISHED_HEADS = {896: (14, 2), 1536: (12, 2), 2048: (16, 2)}
"""Language model width → heads, key/value heads: Qwen2.5-0.5B, -1.5B and -3B."""


def _generator(sizes: _Sizes, prefix: str, config: dict) -> GeneratorConfig:
    vocabulary, width = sizes.shape(prefix + "embed_tokens.weight")
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
    language = LanguageModelConfig(
        width=width,
        depth=sizes.count(prefix + "layers."),
        heads=int(heads),
        kv_heads=int(kv_heads),
        mlp_width=sizes.shape(prefix + "layers.0.mlp.gate_proj.weight")[0],
        vocabulary=vocabulary,
        head_width=sizes.shape(prefix + "layers.0.self_attn.q_proj.weight")[0] // int(heads),
        rope_theta=float(config.get("rope_theta", LanguageModelConfig.rope_theta)),
        eps=float(config.get("rms_norm_eps", LanguageModelConfig.eps)),
        max_positions=int(config.get("max_position_embeddings", LanguageModelConfig.max_positions)),
    )
    head = "image_head.net."
    return GeneratorConfig(
        language,
        FlowHeadConfig(sizes.shape(head + "input_proj.weight")[0], sizes.count(head + "res_blocks.")),
        sizes.shape("adaptive_metaquery.max_metaquery")[-1],
    )


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LayoutError(f"{path.parent.name}/{path.name} beside it is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise LayoutError(f"{path.parent.name}/{path.name} beside it is no configuration")
    return data
