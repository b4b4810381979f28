"""Builds new parts: modules with the initial weights that training starts from."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
from torch import nn

from ..config import AutoencoderConfig, GeneratorConfig, LanguageModelConfig
from ..networks.autoencoder import Autoencoder
from ..networks.language_model import LanguageModel
from ..networks.pixel_decoder import ResBlock
from ..run.generation import Generator

_STD = 0.02


@contextmanager
def seeded(seed: int):
    """Let torch draw from `seed` inside; afterwards its state is what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def new_autoencoder(config: AutoencoderConfig, seed: int) -> Autoencoder:
    """Build an untrained tokenizer.

    The pixel decoder's residual blocks start close to the identity: it learns far faster.
    """
    with seeded(seed):
        autoencoder = Autoencoder(config)
        for part in autoencoder.children():
            if all(parameter.ndim < 5 for parameter in part.parameters()):  # a convolution over time has no such format
                part.to(memory_format=torch.channels_last)
        for block in autoencoder.pixel_decoder.modules():
            if isinstance(block, ResBlock):
                nn.init.constant_(block.norm.weight, 0.05)
        return autoencoder


def new_language_model(config: LanguageModelConfig, seed: int) -> LanguageModel:
    """Build an untrained language model: normal weights, the layers' output projections smaller with depth (GPT-2)."""
    with seeded(seed):
        model = LanguageModel(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                output = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=_STD / math.sqrt(2 * config.depth) if output else _STD)
        return model


def new_generator(config: GeneratorConfig, family: str, seed: int, token_pixels: int | None = None) -> Generator:
    """Build a generator whose own parts are untrained; its language model is for the caller to fill.

    As published: projections and grids normal with deviation 0.02; the flow head Xavier uniform, its modulations and
    its output zero, so that every block starts as the identity.
    """
    with seeded(seed):
        generator = Generator(config, family, token_pixels)
        for grid in generator.position_queries.parameters():
            nn.init.normal_(grid, std=_STD)
        for projector in (generator.image_in_projector, generator.image_out_projector):
            nn.init.normal_(projector.weight, std=_STD)
            nn.init.zeros_(projector.bias)
        head = generator.flow_head
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in (head.time_embed[0], head.time_embed[2]):
            nn.init.normal_(layer.weight, std=_STD)
        for layer in (head.modulation, head.output_proj):
            nn.init.zeros_(layer.weight)
        return generator
