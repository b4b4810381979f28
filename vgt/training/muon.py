"""Muon (Keller Jordan, 2024) with what PyTorch's lacks: convolutions, shared work, float32 where bfloat16 is slow.

PyTorch's takes matrices alone, and computes the Newton-Schulz iteration in bfloat16 for every matrix in every process.
A processor without units for bfloat16 emulates each product, and most of a step is then spent there. State and groups
of matrices are those of PyTorch's, so a run may go on elsewhere with either.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from .processes import rank_and_world

_LONG = 2
"""How many times as long as wide a float32 matrix is that is better orthogonalised by way of its Gram matrix."""


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with `adjust_lr_fn` "match_rms_adamw"; each process orthogonalises a share of the matrices.

    A convolution [out, in, rows, columns] is the matrix [out, in * rows * columns]. All processes of a group must have
    the same gradients.
    """

    def __init__(self, parameters, dtype: torch.dtype = torch.bfloat16, *, lr: float, weight_decay: float):
        """dtype: of the Newton-Schulz iteration. Its coefficients and steps, and the momentum, are PyTorch's."""
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95, "nesterov": True, "eps": 1e-7}
        newton_schulz = {"ns_coefficients": (3.4445, -4.775, 2.0315), "ns_steps": 5}
        super().__init__(parameters, {**defaults, **newton_schulz, "adjust_lr_fn": "match_rms_adamw"})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient. closure: None; training has none."""
        learning = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        wanted = []
        for group, parameter in learning:
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            momentum = state["momentum_buffer"]
            momentum.lerp_(parameter.grad, 1 - group["momentum"])
            ahead = parameter.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
            wanted.append(ahead.flatten(1))
        rank, world = rank_and_world()
        owners = shares([x.numel() * min(x.shape) for x in wanted], world)
        updates = [torch.empty_like(x, dtype=self.dtype, memory_format=torch.contiguous_format) for x in wanted]
        for (group, _), x, update, owner in zip(learning, wanted, updates, owners):
            if owner == rank:
                update.copy_(
                    orthogonalised(x.to(self.dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
                )
        if world > 1:
            _exchange(updates, owners)
        for (group, parameter), update in zip(learning, updates):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view_as(parameter), alpha=-0.2 * group["lr"] * math.sqrt(max(update.shape)))


def orthogonalised(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Bring all singular values of x [n, m] near 1, in its own dtype, by a quintic Newton-Schulz iteration."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    if x.dtype == torch.float32 and x.shape[1] >= _LONG * x.shape[0]:
        x = _factor(x @ x.T, coefficients, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _factor(gram: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The product of the iteration's polynomials, [n, n], from x's products of rows with rows [n, n].

    Each step is x ← p x and so gram ← p gram p, where p is a polynomial in gram: x itself need not be touched.
    """
    a, b, c = coefficients
    product = None
    for step in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        if step + 1 < steps:
            gram = polynomial @ gram @ polynomial
    return product


def shares(costs: list[int], processes: int) -> list[int]:
    """Say which process takes each piece of work: the largest first, each to the one with least to do."""
    load, owners = [0] * processes, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        owners[index] = load.index(min(load))
        load[owners[index]] += costs[index]
    return owners


def _exchange(updates: list[Tensor], owners: list[int]) -> None:
    """Give every process what the others have computed."""
    for owner in sorted(set(owners)):  # in one order everywhere
        part = [update for update, own in zip(updates, owners) if own == owner]
        flat = torch.cat([update.flatten() for update in part])
        dist.broadcast(flat.view(torch.uint8), owner)  # as bytes: not every backend knows every dtype
        for update, values in zip(part, flat.split([update.numel() for update in part])):
            update.copy_(values.view_as(update))
