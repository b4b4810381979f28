"""How the host keeps a model's weights: which stay on the device when it is small, paging, and what memory is free."""

from __future__ import annotations

import weakref

import comfy.model_management as memory
import comfy.model_patcher
from torch import nn

# Newer hosts name the patcher class to use; see "dynamic VRAM" in theirs.
Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)

_HEADS = ("flow_head", "distilled_head")
_EACH_FLOW_STEP = tuple(f"{head}.{part}" for head in _HEADS for part in ("blocks.", "input_proj", "output_proj"))
_ONCE_A_RUN = (*(f"{head}.time_embed." for head in _HEADS), "position_queries")

_ROOM_FOR_NEIGHBOURS = hasattr(comfy.model_patcher, "CoreModelPatcher")
"""Newer hosts keep room for copies in flight by what follows one another in their list; older ones for the largest."""

_SMALL = 64 * 1024
"""Bytes below which a copy costs more than its bytes."""


def is_paged(patcher) -> bool:
    """Whether the host pages this model's weights in and out while it runs (newer hosts' dynamic VRAM)."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def free_memory(patcher) -> int:
    """Bytes that a run of the model may take; in newer hosts with those that paged weights would give up for it."""
    free = getattr(patcher, "get_free_memory", memory.get_free_memory)
    return free(patcher.load_device)


def room_for(needed: int) -> int:
    """Bytes that the host wants free beside the weights for a run that needs so many (its load_models_gpu)."""
    return max(memory.minimum_inference_memory(), needed + memory.extra_reserved_memory())


def generator_patcher(generator: nn.Module):
    """The patcher for a generator on the host's device; its embedding table stays in main memory.

    A host that pages weights does so here only with a generator that does not fit beside a run: graphs need weights
    that stay where they are, and the host holds models that must not be paged in the same way.
    """
    device, offload_device = memory.get_torch_device(), memory.unet_offload_device()
    set_table_aside(generator)
    size = memory.module_size(generator)
    kind = GeneratorPatcher
    if Patcher is not comfy.model_patcher.ModelPatcher:
        if memory.get_total_memory(device) < 1.1 * size + room_for(RUN):
            kind = PagedGeneratorPatcher
    _tell_of_graphs(generator)
    return kind(generator, load_device=device, offload_device=offload_device)


RUN = 2**30
"""Bytes that a usual run takes beside the weights, with its graphs."""


def set_table_aside(generator: nn.Module) -> None:
    """Take the embedding table, of which a run reads a few rows once, out of what the host moves to its device.

    It is found under its name as before, but it is no part of the module: not in its state dict, not moved with it.
    """
    language_model = generator.language_model
    table = language_model.embed_tokens
    del language_model.embed_tokens
    object.__setattr__(language_model, "embed_tokens", table)


def _tell_of_graphs(generator: nn.Module) -> None:
    """What idle graphs hold counts as free in PyTorch, and so in the host: add it to what the host leaves alone."""
    if not hasattr(memory, "EXTRA_RESERVED_VRAM"):
        return
    told = [0]

    def report(idle: int) -> None:
        memory.EXTRA_RESERVED_VRAM += idle - told[0]
        told[0] = idle

    generator.graphs.report = report
    weakref.finalize(generator.graphs, report, 0)


class _Size(int):
    """A module's size in the host's list, which it sorts by; here what is to stay on the device counts as larger."""

    def __new__(cls, size: int, order: tuple):
        self = super().__new__(cls, size)
        self.order = order
        return self

    def __eq__(self, other):
        return self.order == other.order

    def __lt__(self, other):
        return self.order < other.order

    __hash__ = int.__hash__


class _MostReadFirst:
    """What every flow step of a token reads stays on the device first, and what a run reads once goes first.

    By itself the host keeps the largest modules, and sends the flow head's small ones over the bus 30 times a token.
    The language model's come in the order in which they run: so large ones have small neighbours in the list, as on the
    bus, and less room is kept for copies. Some small ones come last, to fill what is left.
    """

    def _load_list(self, *arguments, **options):
        listed = super()._load_list(*arguments, **options)  # (size, …, name, module, parameters)
        if options.get("for_dynamic"):  # (is large, …): those that are not come first
            return [(entry[0] and not entry[-3].startswith(_EACH_FLOW_STEP), *entry[1:]) for entry in listed]
        ordered = []
        for place, (size, *rest) in enumerate(listed):
            among = -place if _ROOM_FOR_NEIGHBOURS else size
            ordered.append((_Size(size, (_rank(rest[-3], size), among)), *rest))
        return ordered


def _rank(name: str, size: int) -> int:
    """The higher, the longer it stays on the device."""
    if name.startswith(_ONCE_A_RUN):
        return 0
    if name.startswith(_EACH_FLOW_STEP) or size < _SMALL:
        return 4
    if name.startswith(_HEADS):  # what makes the modulations is one large matrix
        return 3
    return 1 if name.endswith("o_proj") else 2


class GeneratorPatcher(_MostReadFirst, comfy.model_patcher.ModelPatcher):
    """Graphs hold memory, and the addresses of weights: both go when the host wants the weights elsewhere."""

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:  # else the host asks before every run, and moves nothing
            self.model.graphs.clear()
        return super().unpatch_model(device_to, unpatch_weights)

    def partially_unload(self, *arguments, **options):
        self.model.graphs.clear()
        return super().partially_unload(*arguments, **options)


class PagedGeneratorPatcher(_MostReadFirst, Patcher):
    """For a generator that does not fit, in hosts that page weights."""
