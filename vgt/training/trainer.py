"""Runs a stage of training, in one process or several (processes.py); the loop is the same for every stage.

All randomness of a step follows from the seed, the step and the process; nothing else is drawn. So a run that is
resumed goes on as if it had never stopped, and the checkpoint need not hold the state of any random generator.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, IterableDataset

from .data import batches
from .optimiser import make_optimisers, set_rate, told
from .precision import product_dtype
from .processes import rank_and_world
from .run_log import RunLog
from .run_state import CHECKPOINT, RunState
from .settings import Settings, TrainingError
from .sharding import gathered, shard, unshard, whole

_MAY_DIFFER = {"compile", "device", "save_every", "sheet_every", "log_every", "threads", "workers"}
"""Settings that a resumed run may change: they do not change what is learnt. But what workers read of a stream does."""


class Stage(nn.Module):
    """Gives the loop what it trains: a module whose `forward(batch, rng)` returns (loss, figures to log)."""

    trained: nn.Module
    """The part that is averaged and saved; it holds all trained parameters."""
    dataset: Dataset
    """What `forward`'s batches are made of."""
    settings: Settings

    def groups(self) -> list[dict]:
        """Parameter groups; `scale` multiplies the learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "scale": 1.0}]

    def shards(self) -> list[nn.Module]:
        """The modules whose weights are put together one after the other when all are shared out (Settings.shard)."""
        raise TrainingError("training.shard is for the generator's stage; leave it out for this one.")

    def worth_compiling(self) -> list[nn.Module]:
        """Name what is worth compiling: the modules that take the time, and are called with few different shapes."""
        return []

    def batches(self, first: int, rank: int, world: int) -> Iterable:
        """This process's share of batch `first`, then of the ones after it, without end."""
        settings = self.settings
        return batches(
            self.dataset,
            settings.batch_size,
            seed=settings.seed,
            first=first,
            rank=rank,
            world=world,
            workers=settings.workers,
        )

    def begin_step(self, step: int) -> None:
        """Called before each step's forward."""

    def review(self, averaged: nn.Module, folder: Path, step: int) -> dict[str, float]:
        """Write a sample sheet and return held-out figures, from `averaged`: `trained`, or its moving average."""
        return {}


@dataclass
class _Interrupt:
    """Turns Ctrl-C and SIGTERM into a flag that is read between steps; Ctrl-C again, later, ends at once.

    Not straight away: torchrun hands on the Ctrl-C that its processes got as well.
    """

    asked: bool = False
    since: float = 0.0
    previous: dict = field(default_factory=dict)

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT and time.monotonic() > self.since + 5:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.since = True, time.monotonic()

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def train(
    stage: Stage,
    settings: Settings,
    folder: Path,
    about: dict,
    *,
    until: int | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> nn.Module:
    """Train `stage`, going on from `folder`/last.pt where there is one.

    Args:
        folder: takes last.pt, metrics.jsonl and the sample sheets.
        about: plain data that a resumed run must agree with: the whole configuration.
        until: stop (with a checkpoint) after this many steps of the schedule.
        watch: called after each step with the steps done and their figures; what it raises ends the run. Whoever
            watches also stops: Ctrl-C is left alone then.

    Returns the averaged weights' module, or the trained one when nothing is averaged. Raises TrainingError when the
    checkpoint is of another configuration or the loss is not finite (the last good checkpoint stays), and
    KeyboardInterrupt after Ctrl-C, when the checkpoint is written.
    """
    rank, world = rank_and_world()
    if settings.batch_size % world:
        raise TrainingError(f"batch_size is {settings.batch_size}; it must be a multiple of the {world} processes.")
    device = torch.device(settings.device)
    # Gradients that underflow would make a processor many times slower.
    torch.set_flush_denormal(True)
    stage.to(device)
    sharded = settings.shard and world > 1
    if sharded:
        shard(stage, settings)
    folder.mkdir(parents=True, exist_ok=True)
    embeddings = {part.weight for part in stage.modules() if isinstance(part, nn.Embedding)}
    optimisers = make_optimisers(stage.groups(), settings, embeddings)
    if rank == 0:
        print(told(optimisers, settings), flush=True)
    average = None
    if settings.ema is not None:
        average = AveragedModel(stage.trained, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
    # The processes draw numbers of their own, so that a run goes on with as many as before.
    about = {**about, "training": _comparable(settings), "processes": world}
    if isinstance(stage.dataset, IterableDataset):
        about["workers"] = settings.workers
    auxiliary = getattr(stage, "auxiliary", None)
    state = RunState(stage.trained, auxiliary, optimisers, average, about, folder)
    first = state.resume()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]  # resuming makes new ones
    if settings.compile:
        for module in stage.worth_compiling():
            module.compile()
    last = min(until or settings.steps, settings.steps)
    wrapped = stage
    if world > 1 and not sharded:
        wrapped = DistributedDataParallel(stage, find_unused_parameters=True)
    log = RunLog(folder, first, settings, rank)
    reduced = product_dtype(settings) == torch.bfloat16
    # A processor's fused attention is slow to differentiate where sequences are short.
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with _Interrupt() if watch is None else nullcontext(_Interrupt()) as interrupt, attention:
        # Here, so that Ctrl-C does not end the processes that read the data before the checkpoint is written.
        feed = iter(stage.batches(first * settings.accumulation, rank, world)) if first < last else iter(())
        if first and rank == 0 and log.lacks_review(first):
            if not sharded:  # one process cannot do it by itself
                log.review(first, _reviewed(stage, average, folder, first))
        for step in range(first, last):
            rate = _rate(settings, step)
            for group in groups:
                set_rate(group, settings.learning_rate * group["scale"] * rate)
            stage.begin_step(step)
            figures: dict[str, Tensor] = {}
            for part in range(step * settings.accumulation, (step + 1) * settings.accumulation):
                rng = torch.Generator().manual_seed((settings.seed * 1_000_003 + part) * 4096 + rank)
                with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
                    loss, own = wrapped(next(feed), rng)
                (loss / settings.accumulation).backward()
                for name, value in {"loss": loss, **own}.items():
                    figures[name] = figures.get(name, 0.0) + value.detach() / settings.accumulation
            figures["interrupt"] = torch.tensor(float(interrupt.asked))
            figures = _mean_over_processes(figures, device)
            if not math.isfinite(figures["loss"]):
                log.close()
                raise TrainingError(_not_finite("loss", figures["loss"], step, state.saved))
            norms = [whole(nn.utils.clip_grad_norm_(group["params"], settings.clip)) for group in groups]
            if not (norm := float(torch.stack([norm.to(device) for norm in norms]).sum())) < math.inf:
                log.close()
                raise TrainingError(_not_finite("gradient", norm, step, state.saved))
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            if average is not None:
                average.update_parameters(stage.trained)
            stop = figures.pop("interrupt") > 0
            log.step(step, rate, figures)
            done = step + 1
            if watch is not None:
                watch(done, figures)
            if done % settings.save_every == 0 or done == last or stop:
                state.save(done, rank)
                if world > 1:  # torchrun kills the others when one ends
                    dist.barrier()
            if log.is_due(done) and not stop:
                with gathered(stage) if sharded else nullcontext():
                    if rank == 0:
                        log.review(done, _reviewed(stage, average, folder, done))
                    if world > 1:
                        dist.barrier()
            if stop:
                log.close()
                raise KeyboardInterrupt(f"stopped after step {done}; {folder / CHECKPOINT} goes on from there")
    log.close()
    if sharded:
        return unshard(stage)
    return average.module if average is not None else stage.trained


def _reviewed(stage: Stage, average, folder: Path, done: int) -> dict[str, float]:
    model = average.module if average is not None else stage.trained
    was = model.training
    model.eval()
    with torch.no_grad():
        figures = stage.review(model, folder, done)
    model.train(was)
    return figures


def _rate(settings: Settings, step: int) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


def _mean_over_processes(figures: dict[str, Tensor], device) -> dict[str, float]:
    values = torch.stack([value.detach().float().to(device) for value in figures.values()])
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(figures, values.tolist()))


def _not_finite(what: str, value: float, step: int, saved: int) -> str:
    kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
    return f"The {what} became {value} in step {step + 1}; {kept}. Lower the learning rate, or look at the data."


def _comparable(settings: Settings) -> dict:
    data = {name: value for name, value in asdict(settings).items() if name not in _MAY_DIFFER}
    return json.loads(json.dumps(data))
