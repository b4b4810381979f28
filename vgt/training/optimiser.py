"""Makes the optimisers of a stage: AdamW as published, or Muon for what maps hidden states to hidden states."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .precision import bfloat16_is_slow, product_dtype
from .settings import Settings, TrainingError

_HIDDEN = 64
"""A matrix, or the matrix of a convolution, with fewer rows or columns leads in or out, or to little work."""


def make_optimisers(groups: list[dict], settings: Settings, embeddings: set[nn.Parameter]) -> list[Optimizer]:
    """Make the optimisers that step together.

    groups: parameter groups with `scale`, which multiplies the learning rate. embeddings: never Muon's.
    """
    decay, rate = settings.weight_decay, settings.learning_rate
    groups = [{**group, "lr": rate * group["scale"]} for group in groups]
    adamw, muon = groups, []
    if settings.muon:
        adamw = [_part(group, embeddings, hidden=False) for group in groups]
        muon = [_part(group, embeddings, hidden=True) for group in groups]
    if settings.eight_bit:
        made: list[Optimizer] = [_eight_bit()(adamw, lr=rate, betas=settings.betas, weight_decay=decay)]
    else:
        made = [torch.optim.AdamW(adamw, lr=rate, betas=settings.betas, weight_decay=decay, fused=True)]
    if muon:
        from .muon import Muon

        dtype = torch.float32 if bfloat16_is_slow(torch.device(settings.device).type) else torch.bfloat16
        # Its updates are of AdamW's size, so that one learning rate serves both.
        made.append(Muon(muon, dtype, lr=rate, weight_decay=decay))
    return made


def _eight_bit() -> type[Optimizer]:
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise TrainingError(
            "training.eight_bit needs the torchao library; install it (pip install torchao)."
        ) from error
    return AdamW8bit


def set_rate(group: dict, rate: float) -> None:
    """Set a parameter group's learning rate: torchao's is a tensor, which its compiled step reads."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def told(optimisers: list[Optimizer], settings: Settings) -> str:
    """Say in a line which optimisers were chosen, and what products compute in."""
    adamw = type(optimisers[0]).__name__
    slow = settings.dtype == "bfloat16" and product_dtype(settings) == torch.float32
    products = "products in " + ("float32 (bfloat16 is slow here)" if slow else settings.dtype)
    if len(optimisers) == 1:
        return f"optimiser: {adamw}; {products}"
    dtype = "bfloat16" if optimisers[1].dtype == torch.bfloat16 else "float32 (bfloat16 is slow here)"
    matrices = sum(len(group["params"]) for group in optimisers[1].param_groups)
    return f"optimisers: Muon for {matrices} matrices, orthogonalised in {dtype}; {adamw} for the rest; {products}"


def _part(group: dict, embeddings: set[nn.Parameter], hidden: bool) -> dict:
    def is_hidden(parameter) -> bool:
        return parameter.ndim in (2, 4) and min(parameter.flatten(1).shape) >= _HIDDEN and parameter not in embeddings

    return {**group, "params": [parameter for parameter in group["params"] if is_hidden(parameter) == hidden]}
