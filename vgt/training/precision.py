"""Chooses what training computes in: bfloat16 only where the processor multiplies it as fast as float32."""

from __future__ import annotations

import math
import time
from functools import cache

import torch

from .settings import Settings

_SIDE = 384
_SLOW = 1.5
"""How much longer a product in bfloat16 must take than in float32."""


@cache
def bfloat16_is_slow(device_type: str) -> bool:
    """Measure whether products in bfloat16 take longer than in float32: on a CPU without units for them, many times."""
    if device_type != "cpu":
        return False
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(_SIDE, _SIDE, dtype=dtype)
        for _ in range(4):
            start = time.perf_counter()
            x @ x
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - start)
    return best[torch.bfloat16] > _SLOW * best[torch.float32]


def product_dtype(settings: Settings) -> torch.dtype:
    """What matrix products compute in: the dtype of the settings, but float32 where bfloat16 is slow.

    So a run that another machine began goes on with what suits this one.
    """
    if settings.dtype == "bfloat16" and not bfloat16_is_slow(torch.device(settings.device).type):
        return torch.bfloat16
    return torch.float32
