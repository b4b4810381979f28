"""LoRAs in plain PyTorch: a model with one applied, and a model file with one merged into it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from .files.checkpoint import CheckpointError
from .files.lora import Base, fit, merge, places, read_lora
from .files.reading import read_checkpoint
from .files.single_file import save_checkpoint
from .run.graphs import GraphCache

QUERIES = "position_queries."


def base_of_generator(model: str, family: str, state: Mapping[str, Tensor]) -> Base:
    """What a LoRA of a generator with these weights says of its base. model: the file's name."""
    return Base.of(model, family, {name: tensor for name, tensor in state.items() if name.startswith(QUERIES)})


def with_lora(model, path: str | Path, strength: float = 1.0):
    """See Model.with_lora."""
    if model.generator is None:
        raise ValueError(f"{model.name} is a tokenizer only and takes no LoRA; load a full VGT model.")
    path, generator = Path(path), model.generator
    weights = dict(generator.named_parameters())
    known = places(generator.config, {name: weight.shape for name, weight in weights.items()})
    fitting = fit(read_lora(path), known, path.name, base_of_generator(model.name, generator.family, weights))
    if fitting.warning:
        logging.warning(f"VGT: {fitting.warning}")
    if strength == 0:
        return model
    # All but the weights that change is shared with the model as it was.
    shared = {id(weight): weight for weight in weights.values()}
    shared[id(generator.graphs)] = GraphCache()
    changed = copy.deepcopy(generator, shared)
    for name, weight in merge(fitting, strength, weights.__getitem__, path.name).items():
        owner, _, kind = name.rpartition(".")
        setattr(changed.get_submodule(owner), kind, nn.Parameter(weight, requires_grad=False))
    other = copy.copy(model)
    other.generator = changed
    return other


def merge_file(model: Path, lora: Path, out: Path, strength: float = 1.0) -> None:
    """Write `model`, a file or folder as vgt.load takes them, with a LoRA merged in, in the dtypes that it has.

    Raises what read_checkpoint, read_lora, fit, merge and save_checkpoint raise.
    """
    checkpoint = read_checkpoint(model)
    config = checkpoint.config
    if config.generator is None:
        raise CheckpointError(f"{checkpoint.path.name} is a tokenizer only and takes no LoRA; give a full VGT model.")
    state = checkpoint.state("generator")
    known = places(config.generator, {name: tensor.shape for name, tensor in state.items()})
    queries = {name: tensor.contiguous() for name, tensor in state.items() if name.startswith(QUERIES)}
    own = base_of_generator(checkpoint.path.name, config.family, queries)
    fitting = fit(read_lora(lora), known, lora.name, own)
    if fitting.warning:
        logging.warning(f"VGT: {fitting.warning}")
    changed = merge(fitting, strength, lambda name: state[name].contiguous(), lora.name)
    tensors = {**checkpoint.tensors, **{f"generator.{name}": weight for name, weight in changed.items()}}
    save_checkpoint(replace(checkpoint, tensors=tensors), out)
