"""Token steps replayed as CUDA graphs: what took thousands of launches takes one. Plain torch.cuda.graph.

Graphs hold addresses, so they live as long as the weights stay where they are, and read their inputs from tensors of
their own, into which each run and each step is copied.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .plan import Plan
from .token_step import RunTensors, StepInputs, TokenStep

KEPT = 4
"""Kinds of run whose graphs are kept for one generator."""
LEAST = 4
"""Steps of one shape in a run from which on capturing pays."""
SLOT_STEP = 128
"""Caches of graphs are a multiple of this long, so that prompts of different lengths share them."""


class GraphedSteps:
    """The steps of one kind of run, captured as they first come up. Called like TokenStep, after the first step."""

    def __init__(self, step: TokenStep):
        self.step = step
        self.recurring = recurring(step.plan)
        self.graphs: dict[tuple, tuple[Callable[[], None], StepInputs]] = {}
        self.failed = False

    @property
    def run(self) -> RunTensors:
        return self.step.run

    def first(self, inputs: StepInputs, text: Tensor) -> None:
        self.step.first(inputs, text)

    def load(self, fresh: TokenStep) -> None:
        """Take over a new run of the same kind: its contents, not its tensors."""
        torch._foreach_copy_(self.step.tensors(), fresh.tensors())
        self.step.plan = fresh.plan
        self.recurring = recurring(fresh.plan)

    def __call__(self, inputs: StepInputs, slot: int) -> None:
        shape = _shape(inputs.tensors())
        if shape in self.graphs:
            replay, own = self.graphs[shape]
            torch._foreach_copy_(own.tensors(), inputs.tensors())
            replay()
        elif self.failed or (len(inputs.embeddings), len(inputs.group)) not in self.recurring:
            self.step(inputs, slot)
        else:
            own = StepInputs(*(tensor.clone() for tensor in inputs.tensors()))
            self.step(own)  # does this step, and makes what is made at first use
            self._capture(shape, own)

    def _capture(self, shape: tuple, own: StepInputs) -> None:
        try:
            self.graphs[shape] = capture(lambda: self.step(own)), own
        except RuntimeError as error:  # out of memory is one, too
            self.failed = True
            self.graphs.clear()
            torch.cuda.empty_cache()
            reason = str(error).splitlines()[0]
            logging.warning(f"VGT: drawing without CUDA graphs, which is slower but gives the same ({reason}).")


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Record what `work` launches, without doing it; returns what does it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class GraphCache:
    """The graphs of one generator, most recently used last. A run has its entry for itself while it lasts."""

    def __init__(self):
        self._kept: OrderedDict[tuple, GraphedSteps] = OrderedDict()
        self._weights: tuple = ()
        self._refused = False

    def clear(self) -> None:
        """Give back the memory; for whoever moves or replaces the weights."""
        self._kept.clear()

    def usable(self, generator: nn.Module, plan: Plan, device: torch.device) -> bool:
        """Whether a run is worth graphs and its weights all lie on the CUDA device."""
        return not self._refused and bool(recurring(plan)) and _lies_on_cuda(generator, device)

    @contextmanager
    def borrow(self, fresh: TokenStep):
        """Graphed steps for the run of `fresh`, whose cache is made here. What ends with an exception is not kept."""
        weights = tuple(parameter.data_ptr() for parameter in fresh.generator.parameters())
        if weights != self._weights:
            self.clear()
            self._weights = weights
        slots = -(-fresh.plan.slots // SLOT_STEP) * SLOT_STEP
        hidden = fresh.plan.padded if fresh.plan.hides_padding(1) else None
        key = (slots, hidden, fresh.plan.isolated, fresh.sampler.settings, _shape(fresh.tensors()))
        graphed = self._kept.pop(key, None)
        if graphed is None:
            fresh.allocate(slots)
            graphed = GraphedSteps(fresh)
        else:
            graphed.load(fresh)
        yield graphed
        self._refused = graphed.failed
        if not graphed.failed:
            self._kept[key] = graphed
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)


def recurring(plan: Plan) -> set[tuple[int, int]]:
    """Sizes of steps, (inputs, tokens drawn), that come up often enough to be captured."""
    counts = Counter((len(step.kinds), len(step.group)) for step in plan.steps[1:])
    return {size for size, count in counts.items() if count >= LEAST}


def _lies_on_cuda(generator: nn.Module, device: torch.device) -> bool:
    return device.type == "cuda" and all(parameter.device == device for parameter in generator.parameters())


def _shape(tensors: list[Tensor]) -> tuple:
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors)
