"""Several processes that train together: those that torchrun has started, and those that a recipe starts by itself."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist

_TIMEOUT = timedelta(hours=2)
"""One process writes checkpoints and sheets while the others wait."""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # glibc would give every large tensor back to the system, and clear its pages again for the next one.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def join_torchrun(device: str | None = None) -> None:
    """Join torchrun's process group where there is one. device: as in Settings; None is left to the machine."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group(_backend(device, int(os.environ["LOCAL_RANK"])), timeout=_TIMEOUT)


def rank_and_world() -> tuple[int, int]:
    """This process's number in its group, and how many there are; (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _backend(device: str | None, local: int) -> str:
    if not torch.cuda.is_available() or device == "cpu":
        return "gloo"
    torch.cuda.set_device(local)
    return "nccl"


def together(count: int, device: str | None, work: Callable, *arguments) -> int:
    """Run `work(*arguments)` in `count` new processes of one group, on this machine; returns the exit status.

    work: a function of a module; it may raise SystemExit, and ValueError and OSError with a message for the user,
    which is printed. Unlike torchrun nothing watches over them by the clock, so that they can be halted for as long as
    one likes. Raises KeyboardInterrupt after Ctrl-C or SIGTERM, when the processes have ended.
    """
    with tempfile.TemporaryDirectory() as meeting, _environment(), _sigterm_as_ctrl_c():
        context = multiprocessing.get_context("spawn")
        place = Path(meeting) / "group"
        processes = [
            context.Process(target=_member, args=(rank, count, place, device, work, arguments)) for rank in range(count)
        ]
        for process in processes:
            process.start()
        try:
            return _status(processes)
        except KeyboardInterrupt:
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGINT)  # which a terminal has sent already, and nobody else
            _status(processes)  # they are writing a checkpoint
            raise
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _status(processes) -> int:
    """Wait for all to end well, or for one that does not."""
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in wait(list(running)):
            process = running.pop(sentinel)
            process.join()  # the sentinel is ready a moment before the exit status is
            if process.exitcode:
                return process.exitcode
    return 0


def _member(rank: int, count: int, place: Path, device: str | None, work: Callable, arguments: tuple) -> None:
    try:
        if count > 1:
            method = place.as_uri()
            backend = _backend(device, rank)
            dist.init_process_group(backend, method, timeout=_TIMEOUT, rank=rank, world_size=count)
        work(*arguments)
        if count > 1:
            # fully_shard's modules hold the group in circles. Threads of it that are left would abort the process.
            gc.collect()
            dist.destroy_process_group()
    except (ValueError, OSError) as error:
        print(f"vgt: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@contextmanager
def _environment():
    """The variables that a process reads when it starts."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _sigterm_as_ctrl_c():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
