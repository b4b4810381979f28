"""Refuses a configuration that no model can have, before anything is built from it.

A file or a config.json may say anything: a billion layers, a negative width, three heads for a width of 64.
"""

from __future__ import annotations

import math

from ..config import LATENT_CHANNELS, LanguageModelConfig, ModelConfig, PixelDecoderConfig
from ..families import family
from .sizes import MAX_LAYERS

_MAX_WIDTH = 2**18
_MAX_STAGES = 12


def check_config(config: ModelConfig) -> None:
    """Raise ValueError, in words for a user, unless modules can be built from `config` and run."""
    vision, decoder = config.autoencoder.vision, config.autoencoder.decoder
    check_number("vision tower width", vision.width)
    check_number("vision tower depth", vision.depth, MAX_LAYERS)
    check_number("vision tower MLP width", vision.mlp_width)
    check_number("semantic width", config.autoencoder.semantic_width)
    _check_heads("vision tower", vision.width, vision.heads)
    check_number("vision tower patch", vision.patch, 1024)
    check_number("vision tower merge", vision.merge, 64)
    family(config.family).check_vision(vision)
    _check_decoder(decoder)
    if config.generator:
        _check_language(config.generator.language)
        family(config.family).check_language(config.generator.language)
        check_number("flow head width", config.generator.flow_head.width)
        check_number("flow head depth", config.generator.flow_head.depth, MAX_LAYERS)
        if config.generator.distilled_head is not None:
            check_number("distilled head width", config.generator.distilled_head.width)
            check_number("distilled head depth", config.generator.distilled_head.depth, MAX_LAYERS)
        if len(config.generator.grid) != 2:
            raise ValueError(f"a query grid of {len(config.generator.grid)} sides cannot be")
        for side in config.generator.grid:
            check_number("query grid", side, 1024)
    if not isinstance(config.pad_token, str) or not 0 < len(config.pad_token) <= 100:
        raise ValueError("the token to pad with is not a short text")


def _check_decoder(decoder: PixelDecoderConfig) -> None:
    stages = decoder.widths, decoder.blocks, decoder.attention
    if not all(isinstance(stage, tuple) for stage in stages) or len({len(stage) for stage in stages}) != 1:
        raise ValueError("the pixel decoder's stages are not told as lists of the same length")
    check_number("number of pixel decoder stages", len(decoder.widths), _MAX_STAGES)
    check_number("pixel decoder head width", decoder.head_width)
    check_number("pixel decoder kernel", decoder.kernel, 99)
    if decoder.kernel % 2 == 0:
        raise ValueError(f"a pixel decoder kernel of {decoder.kernel} is not odd")
    for width, blocks, attention in zip(*stages):
        check_number("pixel decoder width", width)
        check_number("number of pixel decoder blocks", blocks, MAX_LAYERS, least=0)
        if type(attention) is not bool:
            raise ValueError("the kind of a pixel decoder stage is neither true nor false")
        if attention and width % decoder.head_width:
            raise ValueError(f"pixel decoder heads of width {decoder.head_width} do not divide a width of {width}")
    for width, before in zip(decoder.widths, decoder.widths[1:]):
        if before not in (width, 2 * width, 4 * width):
            raise ValueError(f"a pixel decoder cannot go from width {before} to {width}")
    if decoder.widths[-1] % LATENT_CHANNELS:
        raise ValueError(f"a pixel decoder's first width cannot be {decoder.widths[-1]}")


def _check_language(language: LanguageModelConfig) -> None:
    check_number("language model width", language.width)
    check_number("language model depth", language.depth, MAX_LAYERS)
    check_number("language model MLP width", language.mlp_width)
    check_number("number of language model heads", language.heads)
    check_number("number of key and value heads", language.kv_heads)
    check_number("language model head width", language.head_width)
    check_number("vocabulary", language.vocabulary, 2**24)
    check_number("longest text", language.max_positions, 2**31)
    if language.heads % language.kv_heads:
        raise ValueError(f"{language.heads} heads cannot share {language.kv_heads} key and value heads")
    for name in ("qkv_bias", "qk_norm"):
        if type(getattr(language, name)) is not bool:
            raise ValueError(f"the language model's {name} is neither true nor false")
    if language.head_width % 2:
        raise ValueError(f"language model heads of width {language.head_width} cannot be rotated")
    for name, value in (("rotary base", language.rope_theta), ("epsilon", language.eps)):
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"a {name} of {str(value)[:40]} is no positive number")


def _check_heads(what: str, width: int, heads: int) -> None:
    check_number(f"number of {what} heads", heads)
    if width % heads:
        raise ValueError(f"{heads} heads do not divide the {what}'s width of {width}")


def check_number(what: str, value: object, most: int = _MAX_WIDTH, *, least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number between `least` and `most`."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a {what} of {str(value)[:40]} cannot be")
