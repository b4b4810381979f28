"""The flow head compiled by torch.compile, for whoever asks for it: fewer launches where there are no CUDA graphs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache

import torch


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
        raise ValueError(f"Compiling the flow head takes {missing}, which is not there; install it, or do not compile.")


def compiled(function: Callable) -> Callable:
    """The function compiled for each set of shapes when it comes up, which takes up to a minute.

    Calls raise RuntimeError, one sentence, when the compiler fails.
    """
    made = _compile(function)

    def call(*arguments):
        try:
            return made(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise RuntimeError(f"The flow head could not be compiled ({reason}); draw without it.") from error

    return call


@cache
def _compile(function: Callable) -> Callable:
    return torch.compile(function, dynamic=False)
