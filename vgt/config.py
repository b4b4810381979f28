"""What a VGT model is made of, as plain data.

Sizes (widths, layer counts) are read off a checkpoint's tensors; what tensors cannot tell (head counts, window layers,
rotary base) comes from the base model's config.json or from a preset of the published models. See checkpoint.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

LATENT_CHANNELS = 32
"""Channels of a latent: each token is a vector of 32 numbers."""

TOKEN_PIXELS = 28
"""Side in pixels of the square that one token stands for."""

INTERNVL3 = "internvl3"
QWEN2_5_VL = "qwen2_5_vl"
FAMILIES = (INTERNVL3, QWEN2_5_VL)


@dataclass(frozen=True)
class InternVisionConfig:
    """InternViT as InternVL3 uses it: patches of 14 pixels, class token, learned positions."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    grid: int = 32
    """Side, in patches, of the learned position table."""


@dataclass(frozen=True)
class QwenVisionConfig:
    """Qwen2.5-VL's vision tower: patches of 14 pixels, 2x2 merge, window attention except in some layers."""

    width: int = 1280
    depth: int = 32
    heads: int = 16
    mlp_width: int = 3420
    window: int = 112
    """Side of an attention window in pixels."""
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    """Layers that attend to the whole image."""


@dataclass(frozen=True)
class PixelDecoderConfig:
    """DC-AE f32c32 decoder. Stages are listed as the file numbers them: highest resolution first."""

    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    blocks: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    attention: tuple[bool, ...] = (False, False, False, True, True, True)
    """Which stages are EfficientViT blocks; the others are residual convolution blocks."""
    head_width: int = 32
    kernel: int = 5
    """Side of the multi-scale branch's depthwise convolution."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """VGT-AE: vision tower, semantic projection, pixel decoder."""

    vision: InternVisionConfig | QwenVisionConfig
    semantic_width: int
    decoder: PixelDecoderConfig = PixelDecoderConfig()


@dataclass(frozen=True)
class LanguageModelConfig:
    """A Qwen2 decoder."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp_width: int
    vocabulary: int
    head_width: int = 128
    rope_theta: float = 1e6
    eps: float = 1e-6
    max_positions: int = 32768


@dataclass(frozen=True)
class FlowHeadConfig:
    """The flow matching head: a residual MLP with adaptive layer norm."""

    width: int = 1536
    depth: int = 12


@dataclass(frozen=True)
class GeneratorConfig:
    """VGT-AR: language model, position queries, flow head."""

    language: LanguageModelConfig
    flow_head: FlowHeadConfig = FlowHeadConfig()
    query_grid: int = 64
    """Side, in tokens, of the learned position grids: the largest image a model can draw."""


@dataclass(frozen=True)
class ModelConfig:
    """A whole model; `generator` is None for a tokenizer-only file."""

    family: str
    autoencoder: AutoencoderConfig
    generator: GeneratorConfig | None = None
    pad_token: str = "<|endoftext|>"

    def to_dict(self) -> dict:
        """The form stored as JSON under `vgt.config` in a model file's metadata."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ModelConfig:
        """Inverse of `to_dict` (lists may stand for tuples). Raises KeyError, TypeError or ValueError on other data."""
        if data["family"] not in FAMILIES:
            raise ValueError(f"unknown family {data['family']!r}")
        vision = InternVisionConfig if data["family"] == INTERNVL3 else QwenVisionConfig
        autoencoder, generator = data["autoencoder"], data.get("generator")
        return cls(
            family=data["family"],
            autoencoder=AutoencoderConfig(
                vision=_build(vision, autoencoder["vision"]),
                semantic_width=int(autoencoder["semantic_width"]),
                decoder=_build(PixelDecoderConfig, autoencoder["decoder"]),
            ),
            generator=generator
            and GeneratorConfig(
                language=_build(LanguageModelConfig, generator["language"]),
                flow_head=_build(FlowHeadConfig, generator["flow_head"]),
                query_grid=int(generator["query_grid"]),
            ),
            pad_token=str(data["pad_token"]),
        )


def _build(kind, data: dict):
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
