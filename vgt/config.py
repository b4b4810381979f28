"""What a VGT model is made of, as plain data.

Sizes (widths, layer counts) are read off a checkpoint's tensors; what tensors cannot tell (head counts, window layers,
rotary base) comes from the base model's config.json or from a preset of the published models. See checkpoint.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .families._family import VisionConfig

FORMAT = 1
"""Of `vgt.config` in model files, where they say it."""

LATENT_CHANNELS = 32
"""Channels of a latent: each token is a vector of 32 numbers."""


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

    vision: VisionConfig
    semantic_width: int
    decoder: PixelDecoderConfig = PixelDecoderConfig()

    @property
    def token_pixels(self) -> int:
        """Side in pixels of the square that one token stands for."""
        return self.vision.token_pixels

    @property
    def only_side(self) -> int:
        """Side in pixels of the only images that the vision tower takes; 0: any of whole tokens."""
        return getattr(self.vision, "only_grid", 0) * self.token_pixels


@dataclass(frozen=True)
class LanguageModelConfig:
    """A pre-norm decoder with grouped key/value heads, rotary positions and SwiGLU."""

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
    qkv_bias: bool = True
    """Queries, keys and values have biases."""
    qk_norm: bool = False
    """Each head's queries and keys are normalised before they are rotated."""


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
    query_grid: int | tuple[int, int] = 64
    """Rows and columns, in tokens, of the learned position grids, or one number for both: the largest image a model can
    draw."""

    distilled_head: FlowHeadConfig | None = None
    """A second head that jumps over the flow (networks/distilled_head.py); None: the model has none."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position grids."""
        return (self.query_grid,) * 2 if isinstance(self.query_grid, int) else self.query_grid


@dataclass(frozen=True)
class ModelConfig:
    """A whole model; `generator` is None for a tokenizer-only file."""

    family: str
    autoencoder: AutoencoderConfig
    generator: GeneratorConfig | None = None
    pad_token: str = "<|endoftext|>"

    @property
    def token_pixels(self) -> int:
        """Side in pixels of the square that one token stands for."""
        return self.autoencoder.token_pixels

    def to_dict(self) -> dict:
        """The form stored as JSON under `vgt.config` in a model file's metadata."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ModelConfig:
        """Inverse of `to_dict` (lists may stand for tuples; what is left out is the default).

        Raises UnknownModel for what another version wrote, and KeyError, TypeError or ValueError on other data.
        """
        from .families import family

        if data.get("format", FORMAT) != FORMAT:
            raise UnknownModel(f"it is of format {str(data['format'])[:40]}, and this version reads {FORMAT}")
        try:
            found = family(data["family"])
        except ValueError as error:
            raise UnknownModel(str(error)) from error
        autoencoder, generator = data["autoencoder"], data.get("generator")
        grid = generator and generator["query_grid"]
        return cls(
            family=data["family"],
            autoencoder=AutoencoderConfig(
                vision=_build(found.vision_config, autoencoder["vision"]),
                semantic_width=int(autoencoder["semantic_width"]),
                decoder=_build(PixelDecoderConfig, autoencoder["decoder"]),
            ),
            generator=generator
            and GeneratorConfig(
                language=_build(found.language_config, generator["language"]),
                flow_head=_build(FlowHeadConfig, generator["flow_head"]),
                query_grid=tuple(grid) if isinstance(grid, list | tuple) else int(grid),
                distilled_head=_build(FlowHeadConfig, generator["distilled_head"])
                if generator.get("distilled_head")
                else None,
            ),
            pad_token=str(data["pad_token"]),
        )


class UnknownModel(ValueError):
    """A model file of a format or a family that this version does not know."""


def _build(kind, data: dict):
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
