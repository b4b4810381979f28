"""Token steps replayed as CUDA graphs: what took thousands of launches takes one. Plain torch.cuda.graph.

Graphs hold addresses, so they live as long as the weights stay where they are, and read their inputs from tensors of
their own, into which each run and each step is copied.
"""

from __future__ import annotations

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from ..networks.language_model import KVCache
from .compiled import lies_on
from .plan import Plan
from .token_step import RunTensors, StepInputs, TokenStep, shared_slots

KEPT = 4
"""Kinds of run whose graphs are kept for one generator, at most."""
KEPT_BYTES = 2**30
"""Bytes that the caches and tensors of those may take together; the last kind is kept whatever it takes."""


class GraphedSteps:
    """The steps of one kind of run, captured as they first come up. Called like TokenStep, after the first step."""

    def __init__(self, step: TokenStep, pool):
        self.step = step
        self.pool = pool
        self.recurring = step.plan.recurring
        self.graphs: dict[tuple, tuple[Callable[[], None], StepInputs]] = {}
        self.failed = False

    @property
    def run(self) -> RunTensors:
        return self.step.run

    @property
    def cache(self) -> KVCache:
        return self.step.cache

    def first(self, inputs: StepInputs, text: Tensor) -> None:
        self.step.first(inputs, text)

    def read_first(self, inputs: StepInputs, text: Tensor) -> None:
        self.step.read_first(inputs, text)

    def read(self, inputs: StepInputs, slot: int) -> None:
        self.step.read(inputs, slot)

    def bytes(self) -> int:
        """What its cache and tensors take, beside the graphs' own memory."""
        held = [*self.step.tensors(), self.step.cache.keys, self.step.cache.values]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def load(self, fresh: TokenStep) -> None:
        """Take over a new run of the same kind: its contents, not its tensors."""
        torch._foreach_copy_(self.step.tensors(), fresh.tensors())
        self.step.cache.clear()
        self.step.generator = fresh.generator
        self.step.plan = fresh.plan
        self.recurring = fresh.plan.recurring

    def __call__(self, inputs: StepInputs, slot: int) -> None:
        shape = _shape(inputs.tensors()), inputs.flow_steps
        if shape in self.graphs:
            replay, own = self.graphs[shape]
            torch._foreach_copy_(own.tensors(), inputs.tensors())
            replay()
        elif self.failed or inputs.size not in self.recurring:
            self.step(inputs, slot)
        else:
            own = replace(
                inputs, **{name: part.clone() for name, part in vars(inputs).items() if torch.is_tensor(part)}
            )
            try:
                self.graphs[shape] = capture(lambda: self.step(own), self.run.table.device, self.pool), own
            except RuntimeError as error:  # out of memory is one, too
                self.failed = True
                reason = str(error).splitlines()[0]
                logging.warning(f"VGT: drawing without CUDA graphs, which is slower but gives the same ({reason}).")
            if self.failed:  # here, where the error holds nothing any more
                self.graphs.clear()
                with suppress(RuntimeError):  # which PyTorch raises when the capture ended out of turn
                    torch.cuda.empty_cache()
                self.step(inputs, slot)


def capture(work: Callable[[], None], device: torch.device, pool) -> Callable[[], None]:
    """Do `work`, and record what it launches; returns what does it again. Doing it twice must be as doing it once.

    pool: whose memory the graph takes. Graphs that are never replayed at the same time, and whose results lie outside,
    can share one.
    """
    graph, stream = torch.cuda.CUDAGraph(), _stream(device)
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            # All on one stream, so that workspaces that libraries make for a stream at first use are not the graph's.
            with torch.cuda.stream(stream):
                work()
                # Other threads may go on using the device.
                with _no_garbage(), torch.cuda.graph(graph, pool, stream, "thread_local"):
                    work()
        finally:
            current.wait_stream(stream)
        graph.replay()  # with cudaMallocAsync its memory is taken here, so that too little of it shows here too
    return graph.replay


@contextmanager
def _no_garbage():
    """A graph that the collector destroyed meanwhile would spoil the capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class GraphCache:
    """The graphs of one generator, most recently used last. A run has its entry for itself while it lasts."""

    def __init__(self):
        self._kept: OrderedDict[tuple, GraphedSteps] = OrderedDict()
        self._weights: tuple = ()
        self._pool = None
        self.refused: set[tuple] = set()
        """Kinds of run whose capture failed; they go without."""
        self.report: Callable[[int], None] | None = None
        """Called with `idle_bytes()` when they change, for whoever keeps count of the device's memory."""

    def clear(self) -> None:
        """Give back the memory; for whoever moves or replaces the weights."""
        self._kept.clear()
        self._pool = None
        if self.report:
            self.report(0)

    def idle_bytes(self) -> int:
        """Bytes that the graphs hold between replays and PyTorch counts as free, though nothing else can have them."""
        if self._pool is None or not self._kept:
            return 0
        segments = [own for own in torch.cuda.memory_snapshot() if tuple(own["segment_pool_id"]) == tuple(self._pool)]
        return sum(segment["total_size"] - segment["allocated_size"] for segment in segments)

    def usable(self, generator: nn.Module, plan: Plan, device: torch.device) -> bool:
        """Whether a run is worth graphs and its weights all lie on the CUDA device."""
        return bool(plan.recurring) and _lies_on_cuda(generator, device)

    @contextmanager
    def borrow(self, fresh: TokenStep):
        """What does the steps of the run of `fresh`, whose cache is made here: graphs, unless those of its kind failed.

        What ends with an exception is not kept.
        """
        weights = tuple(parameter.data_ptr() for parameter in fresh.generator.parameters())
        if weights != self._weights:
            self.clear()
            self.refused.clear()  # there may be room now
            self._weights = weights
        slots = shared_slots(fresh.plan.slots)
        # What code reads and no tensor holds; and tensors of inference mode can only be written in inference mode.
        constants = (
            fresh.plan.hides_padding(1),
            fresh.plan.isolated,
            fresh.plan.prompts,
            fresh.sampler.settings,
            fresh.sampler.compile,
        )
        key = (slots, constants, _shape(fresh.tensors()), torch.is_inference_mode_enabled())
        if key in self.refused:
            fresh.allocate(fresh.plan.slots)
            yield fresh
            return
        graphed = self._kept.pop(key, None)
        if graphed is None:
            fresh.allocate(slots)
            if self._pool is None:
                self._pool = new_pool()
            graphed = GraphedSteps(fresh, self._pool)
        else:
            graphed.load(fresh)
        done = False
        try:
            yield graphed
            done = True
        finally:
            if graphed.failed:
                self.refused.add(key)
            elif done:
                self._keep(key, graphed)
            graphed = None
            if self.report:
                self.report(self.idle_bytes())

    def _keep(self, key: tuple, graphed: GraphedSteps) -> None:
        graphed.step.generator = None  # which holds these graphs: in a circle, none would be freed at once
        self._kept[key] = graphed
        while len(self._kept) > 1 and (
            len(self._kept) > KEPT or sum(one.bytes() for one in self._kept.values()) > KEPT_BYTES
        ):
            self._kept.popitem(last=False)


def new_pool():
    """Memory for the graphs of one generator: its graphs run one after the other, so they take turns in it."""
    return torch.cuda.graph_pool_handle()


def _lies_on_cuda(generator: nn.Module, device: torch.device) -> bool:
    return device.type == "cuda" and lies_on(generator, device)


def _shape(tensors: list[Tensor]) -> tuple:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors)
