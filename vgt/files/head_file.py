"""A distilled head in a file of its own: some MB beside a model of GB, and no use without it.

One .safetensors: the head's tensors under their names in the module, and under `vgt.head` in the metadata its sizes,
the file name and the weights' digest of the model that it was made for, and how that model is drawn with it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..config import FlowHeadConfig
from ..sampling import SamplingSettings
from .checkpoint import Checkpoint, CheckpointError
from .config_check import MAX_LAYERS, check_number
from .durable import put_in_place
from .fingerprint import fingerprint

HEAD_KEY = "vgt.head"

_PREFIX = "distilled_head."


def generator_digest(checkpoint: Checkpoint) -> str:
    """Tells by 16 hexadecimal digits which generator a head was made for, whatever heads it has beside its own."""
    own = {name: tensor for name, tensor in checkpoint.state("generator").items() if not name.startswith(_PREFIX)}
    return fingerprint(own)[:16]


def save_head(
    state: dict[str, Tensor], config: FlowHeadConfig, base: Checkpoint, recommended: SamplingSettings, path: Path
) -> None:
    """Write the head `state` (names inside the module) that was made for `base`."""
    about = {
        "config": dataclasses.asdict(config),
        "model": base.path.name,
        "weights": generator_digest(base),
        "recommended": recommended.to_dict(),
    }
    unfinished = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, unfinished, {HEAD_KEY: json.dumps(about)})
    put_in_place(unfinished, path)


def with_head(checkpoint: Checkpoint, state: dict[str, Tensor], config: FlowHeadConfig, recommended: SamplingSettings):
    """A whole model: `checkpoint` and the head beside its own."""
    generator = replace(checkpoint.config.generator, distilled_head=config)
    tensors = {name: part for name, part in checkpoint.tensors.items() if not name.startswith(f"generator.{_PREFIX}")}
    tensors |= {f"generator.{_PREFIX}{name}": tensor for name, tensor in state.items()}
    return replace(
        checkpoint,
        config=replace(checkpoint.config, generator=generator),
        tensors=tensors,
        recommended=recommended.over(checkpoint.recommended),
    )


def read_head(
    path: Path, metadata: dict[str, str], tensors: dict[str, Tensor], open_model: Callable[[str], Checkpoint]
) -> Checkpoint:
    """The model of a head file, with its head.

    open_model: the model of a file name; raises FileNotFoundError where there is none. Raises CheckpointError when the
    model is another than the head was made for.
    """
    try:
        about = json.loads(metadata[HEAD_KEY])
        config = FlowHeadConfig(**about["config"])
        check_number("distilled head width", config.width)
        check_number("distilled head depth", config.depth, MAX_LAYERS)
        name, weights = str(about["model"]), str(about["weights"])
        recommended = SamplingSettings.from_dict(about["recommended"])
        if Path(name).name != name:
            raise ValueError("the model's name is a path")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f"{path.name} holds a {HEAD_KEY} that cannot be used ({reason}).") from error
    try:
        base = open_model(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path.name} is a distilled flow head for {name}, which is not there; put {name} beside it."
        ) from error
    if base.config.generator is None or generator_digest(base) != weights:
        raise CheckpointError(
            f"{path.name} is a distilled flow head for other weights than {name} holds; use the head that was made for "
            "this model."
        )
    return replace(with_head(base, tensors, config, recommended), path=path)
