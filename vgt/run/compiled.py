"""Parts of a step compiled by torch.compile, for whoever asks for it: fewer launches where there are no CUDA graphs."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

OPTIONS = {"realize_reads_threshold": 2}
"""So that what a block of the flow head adds up is stored, and not made again in each kernel that reads it."""
APART = 0.05
"""How far what is compiled may lie from what is not, as a share of its length; rounding in bfloat16 makes 0.01."""


def check_compiler(device: torch.device) -> None:
    """Raise ValueError, one sentence, where torch.compile has nothing to compile with."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        missing = None if has_triton() else "Triton"
    else:
        usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        compiler = os.environ.get("CXX") or usual
        missing = None if shutil.which(compiler) else f"the C++ compiler {compiler}"
    if missing:
        raise ValueError(f"Compiling the model takes {missing}, which is not there; install it, or do not compile.")


def lies_on(module: nn.Module, device: torch.device) -> bool:
    """Whether all weights of a module are there, so that none moves while it works."""
    return all(parameter.device == device for parameter in module.parameters())


@cache
def compiled(function: Callable) -> Callable:
    """The function compiled for each set of shapes when it comes up, which takes up to a minute; once a process.

    Done twice, the function must be as done once: at its first call for a set of shapes the plain one is called too,
    and serves for good, with a line in the log, where the two differ. Calls raise RuntimeError, one sentence, when the
    compiler fails.
    """
    made, uses = _compile(function), {}

    def call(*arguments):
        shapes = _shapes(arguments)
        use = uses.get(shapes)
        if use is not None:
            return use(*arguments)
        try:
            result = made(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise RuntimeError(f"The model could not be compiled ({reason}); draw without it.") from error
        plain = function(*arguments)
        uses[shapes] = made if _agree(result, plain) else function
        if uses[shapes] is made:
            return result
        logging.warning("VGT: a compiled step differs from the plain one; drawing without it.")
        return plain

    return call


def _shapes(arguments: tuple) -> tuple:
    """What the compiler compiles anew for, tensors in tuples included."""
    parts = []
    for part in arguments:
        if isinstance(part, tuple):
            parts.append(_shapes(part))
        elif isinstance(part, Tensor):
            parts.append((part.shape, part.dtype, part.device))
        elif isinstance(part, nn.Module):
            parts.append(type(part))
        else:
            parts.append(part)
    return tuple(parts)


def _agree(result, plain) -> bool:
    if isinstance(result, tuple):
        return all(_agree(*both) for both in zip(result, plain, strict=True))
    return bool(torch.linalg.vector_norm(result - plain) <= APART * torch.linalg.vector_norm(plain))


def _compile(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False, options=OPTIONS)
