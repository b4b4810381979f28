"""A run under the host's memory management: what it needs, and what happens where that is not there."""

from __future__ import annotations

import logging

import comfy.model_management as memory
import torch
from torch import Tensor

from ...vgt.config import LATENT_CHANNELS
from ...vgt.run import generation
from ...vgt.run.beginning import Beginning
from ...vgt.run.flow import MODULATION_ROWS
from ...vgt.run.plan import group_sizes
from ...vgt.run.record import RunRecord
from ...vgt.sampling import SamplingSettings
from .loading import VGTModel
from .patcher import free_memory, is_paged, room_for
from .progress import ProgressReport


def generate(
    model: VGTModel,
    progress: ProgressReport,
    prompts: list[str],
    negative: str | None,
    settings: SamplingSettings,
    *,
    latent: Tensor | None,
    mask: Tensor | None,
    batch_index: list[int],
    record: RunRecord,
    beginning: Beginning | None = None,
    **steering,
) -> Tensor:
    """vgt.run.generation.generate on the host's device. A batch that does not fit is drawn in two halves.

    steering: the arguments of that function that are alike for all images.
    """
    patcher = model.patcher
    needed = _sampling_memory(model, prompts, negative, settings, mask, _more_prompts(steering))
    if free_memory(patcher) < room_for(needed):
        patcher.model.graphs.clear()  # rather than have the host unload weights for want of what these hold
        memory.soft_empty_cache()
    memory.load_models_gpu([patcher], memory_required=needed)
    device = patcher.load_device
    start = progress.begin((settings.height // model.token_pixels, settings.width // model.token_pixels), needed)
    try:
        if len(prompts) == 1 or needed <= free_memory(patcher):
            return generation.generate(
                patcher.model,
                model.tokenizer,
                prompts,
                negative,
                settings,
                latent=latent,
                mask=mask,
                batch_index=batch_index,
                record=record,
                beginning=beginning,
                **steering,
                device=device,
                graphs=not is_paged(patcher),
                compile=model.compile and not is_paged(patcher),
                progress=progress,
            )
    except Exception as error:
        if not is_out_of_memory(error):
            if is_device_lost(error):
                reason = str(error).partition("\n")[0].rstrip(".")
                raise RuntimeError(f"The device failed while it drew ({reason}); start ComfyUI again.") from error
            raise
        patcher.model.graphs.clear()
        if len(prompts) == 1:
            raise RuntimeError(
                "There is not enough memory to draw one image of this size; choose a smaller size, fewer tokens per "
                "step, or fp8_e4m3fn in VGT Loader."
            ) from error
    memory.soft_empty_cache()
    logging.warning(f"VGT: not enough memory for {len(prompts)} images at once, drawing them in two parts.")
    halves, spreads = [], []
    middle = len(prompts) // 2
    for part in (slice(None, middle), slice(middle, None)):
        progress.rewind(start)
        rows = {"latent": None if latent is None else latent[part], "batch_index": batch_index[part]}
        halves.append(
            generate(model, progress, prompts[part], negative, settings, mask=mask, record=record, **rows, **steering)
        )
        spreads.append(record.spread)
    record.spread = torch.cat(spreads)
    return torch.cat(halves)


def is_out_of_memory(error: Exception) -> bool:
    """Newer hosts know more forms of it than one exception; of a CUDA graph and on a CPU it is a RuntimeError."""
    known = memory.is_oom(error) if hasattr(memory, "is_oom") else isinstance(error, memory.OOM_EXCEPTION)
    said = ("out of memory", "DefaultCPUAllocator")
    return known or (isinstance(error, RuntimeError) and any(part in str(error) for part in said))


def is_device_lost(error: Exception) -> bool:
    """An error of the device, after which nothing works on it; older versions of PyTorch have no class for it."""
    of_a_device = isinstance(error, getattr(torch, "AcceleratorError", ()))
    return of_a_device or (isinstance(error, RuntimeError) and str(error).startswith(("CUDA error", "HIP error")))


def _more_prompts(steering: dict) -> int:
    """At most so many prompts beside the common one: rows of the language model."""
    return len(steering.get("regions", ())) + len(steering.get("changes", ()))


def _sampling_memory(
    model: VGTModel,
    prompts: list[str],
    negative: str | None,
    settings: SamplingSettings,
    mask: Tensor | None,
    more: int = 0,
) -> int:
    """Bytes a run needs beside the weights: KV cache, activations of the largest step, modulations, noise.

    more: prompts of an image beside the common one.
    """
    generator = model.patcher.model
    language, head = generator.config.language, generator.config.flow_head
    if settings.flow.solver == "distilled":
        head = generator.config.distilled_head or head
    size = memory.dtype_size(generator.dtype)
    guided = settings.cfg > 1
    rows = len(prompts) * (more + (2 if guided else 1))
    text = max(model.tokenizer(prompts[:1], [negative] if guided else None).lengths)
    tokens = settings.height * settings.width // model.token_pixels**2
    drawn = tokens if mask is None else int(mask.sum())
    given = tokens - drawn
    together = settings.tokens_per_step
    group = max(group_sizes(drawn, together, settings.grouping))
    slots = text + 2 * given + (3 if together > 1 else 2) * drawn
    rotary = 2 * rows * slots * language.head_width * size
    cache = 2 * language.depth * rows * language.kv_heads * slots * language.head_width * size
    inputs = max(text + 2 * given + group, 3 * group)
    activations = inputs * (4 * language.mlp_width + 6 * language.width) + language.heads * inputs**2
    activations *= rows * size
    steps = settings.flow.steps
    # the flow head makes them for so many rows at a time, and drops the last ones when it has the next
    modulated = rows * group * min(steps, 2 * max(1, MODULATION_ROWS // (rows * group)))
    modulations = modulated * (3 * head.depth + 2) * head.width * size * 9 // 8
    noise = len(prompts) * tokens * steps * LATENT_CHANNELS * 4
    return cache + rotary + max(activations, modulations) + noise
