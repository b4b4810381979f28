"""How the host keeps a model's weights: the patcher class of this version, paging, and what memory is free."""

from __future__ import annotations

import comfy.model_management as memory
import comfy.model_patcher

# Newer hosts name the patcher class to use; see "dynamic VRAM" in theirs.
Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


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


class GeneratorPatcher(Patcher):
    """Graphs hold memory, and the addresses of weights: both go when the host wants the weights elsewhere."""

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:  # else the host asks before every run, and moves nothing
            self.model.graphs.clear()
        return super().unpatch_model(device_to, unpatch_weights)

    def partially_unload(self, *arguments, **options):
        self.model.graphs.clear()
        return super().partially_unload(*arguments, **options)
