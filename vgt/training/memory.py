"""Tells what training needs beside the weights it rests on, computed from the layers; tests count the allocations."""

from __future__ import annotations

from ..config import GeneratorConfig
from ..networks.adapters import PARTS
from .generator import Objective

ADAM = 4
"""Numbers a parameter that learns: itself, its gradient, two moments."""
FLOAT32 = 4


def lora_memory(
    config: GeneratorConfig, lora, objective: Objective, *, batch: int, text: int, tokens: int, itemsize: int
) -> int:
    """Count the bytes that training a LoRA takes beside the generator's weights, at its highest.

    text, tokens: of the longest caption, and of the largest picture; itemsize: bytes of a number computed with.
    """
    learnt = ADAM * FLOAT32 * adapter_numbers(config, lora.parts, lora.rank)
    return learnt + activations(config, objective, batch, text + 2 * tokens, tokens, itemsize, lora.checkpointing)


def adapter_numbers(config: GeneratorConfig, parts, rank: int) -> int:
    """Count the numbers of the adapters on some of adapters.PARTS."""
    return rank * sum(sum(shape) for part in parts for shape in _layers(config)[part])


def activations(
    config: GeneratorConfig, objective: Objective, batch: int, inputs: int, tokens: int, itemsize: int, checkpointing
) -> int:
    """Count the bytes of what lies between forward and backward. inputs: of the language model, a row."""
    language, head = config.language, config.flow_head
    projected = (language.heads + 2 * language.kv_heads) * language.head_width
    # Of a layer, a row of inputs: what autograd keeps of the projections, and the attention's matrix.
    layer = batch * inputs * (language.width + 4 * projected + 4 * language.mlp_width + 2 * language.heads * inputs)
    # Of the flow head: modulations, their parts and their gradients outweigh all else.
    drawn = 3.2 * batch * tokens * objective.draws * head.width * (3 * head.depth + 2)
    if not checkpointing:
        return int((language.depth * layer + drawn) * itemsize)
    # What goes into each layer; then the head, which is done with before the layers are computed again, one by one.
    return int((batch * inputs * language.depth * language.width + max(layer, drawn)) * itemsize)


def _layers(config: GeneratorConfig) -> dict[str, list[tuple[int, int]]]:
    """(inputs, outputs) of the linear layers of each of adapters.PARTS."""
    language, head, latent = config.language, config.flow_head, 32
    heads = language.heads * language.head_width
    projected = heads + 2 * language.kv_heads * language.head_width
    layer = [
        (language.width, projected),
        (heads, language.width),
        (language.width, 2 * language.mlp_width),
        (language.mlp_width, language.width),
    ]
    modulations = (3 * head.depth + 2) * head.width
    square = (head.width, head.width)
    own = [(256, head.width), square, (language.width, head.width), (latent, head.width), (head.width, modulations)]
    found = (
        layer * language.depth,
        [(latent, language.width), (language.width, language.width)],
        [*own, *[square] * (2 * head.depth), (head.width, latent)],
    )
    return dict(zip(PARTS, found, strict=True))
