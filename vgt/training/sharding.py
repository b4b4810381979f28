"""Weights, gradients and moments shared out over the processes of torchrun: PyTorch's fully_shard (FSDP2)."""

from __future__ import annotations

from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from .settings import Settings, TrainingError


def shard(stage, settings: Settings) -> None:
    """Share a stage's parameters out: those of `stage.shards()` one by one, the rest together.

    Raises TrainingError for settings that do not go with it.
    """
    if settings.muon or settings.ema is not None:
        raise TrainingError("training.shard goes with AdamW alone; leave muon and ema out.")
    parts = stage.shards()
    kind = settings.device.partition(":")[0]
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(stage, mesh=mesh)


@contextmanager
def gathered(stage: nn.Module):
    """Inside, every process has all weights whole, for work outside of `stage`'s forward."""
    parts = [part for part in stage.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)  # or the next forward would wait for the others
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def unshard(stage) -> nn.Module:
    """`stage.trained` with ordinary weights, the same in every process."""
    for module in stage.trained.modules():
        for name, weight in list(module._parameters.items()):
            if isinstance(weight, DTensor):
                module._parameters[name] = nn.Parameter(weight.full_tensor(), requires_grad=False)
    return stage.trained


def whole(value):
    """Sharded tensors, in whatever lists and dicts, put together; every process must ask."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value.full_tensor() if isinstance(value, DTensor) else value


def load_shared(part, content: dict) -> None:
    """Load a whole state dict into a module or an optimiser whose parameters may be shared out."""
    if isinstance(part, Optimizer):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        state = {
            index: {name: _like(value, weights[index]) for name, value in own.items()}
            for index, own in content["state"].items()
        }
        part.load_state_dict({**content, "state": state})
    else:
        own = part.state_dict()
        part.load_state_dict({name: _like(value, own.get(name)) for name, value in content.items()})


def _like(value, weight):
    """A whole tensor shared out as `weight` is, where it has its shape."""
    if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
        return distribute_tensor(value, weight.device_mesh, weight.placements)
    return value
