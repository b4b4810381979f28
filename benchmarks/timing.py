"""Times things: warmed up, in turn, on a device that has finished its work."""

from __future__ import annotations

import gc
import statistics
import time

import torch

ENOUGH = 6.0
"""Seconds after which no further round begins: short work is timed more often, since it varies more."""
MOST_ROUNDS = 25


def in_turn(device: torch.device, runs: int, **contenders) -> dict[str, float]:
    """Time contenders (functions without arguments) in rounds A B A B …, after one warm-up: median seconds of each.

    Taking turns keeps a drifting machine from favouring one of them. `runs` rounds at least; further ones, up to
    MOST_ROUNDS, while all together took less than ENOUGH seconds.
    """
    seconds = {name: [] for name in contenders}
    rounds, spent = -1, 0.0
    while rounds < runs or (rounds < MOST_ROUNDS and spent < ENOUGH):
        for name, work in contenders.items():
            finish(device)
            began = time.perf_counter()
            work()
            finish(device)
            if rounds >= 0:
                seconds[name].append(time.perf_counter() - began)
                spent += seconds[name][-1]
        rounds += 1
    return {name: statistics.median(values) for name, values in seconds.items()}


def copy_bandwidth(device: torch.device) -> float:
    """Measure the bytes a second that the device reads (a copy reads and writes each byte; both count)."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / in_turn(device, 5, copy=lambda: target.copy_(source))["copy"]


def peak_memory(device: torch.device, work) -> int | None:
    """Measure the bytes allocated at the peak of `work`, with what was there before; None if it is not told."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
