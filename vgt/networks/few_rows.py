"""The flow head for few rows, written so that a compiler makes two kernels of a block instead of four.

A library's matrix product is a kernel of its own, and so is what stands before and after it. A product of few rows is
as well written as a sum over the width, which a compiler joins with all that stands around it, if everything has that
sum's shape: so each output normalises its inputs for itself. They are few and lie in the cache; the weights, which
take the time, are read once. Only to be compiled: step by step, whole matrices would be written out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .flow_head import FlowHead

FEW = 8
"""Rows (tokens that are drawn, and as many without their condition) up to which this pays; a guess, not measured."""
DEVICES = ("cuda",)
"""Where launches cost more than arithmetic."""


def suits(x: Tensor) -> bool:
    """Whether rows [N, 32] are better evaluated by `velocity`."""
    return len(x) <= FEW and x.device.type in DEVICES


def velocity(head: FlowHead, x: Tensor, modulations: Tensor) -> Tensor:
    """As FlowHead.velocity: x [N, 32], modulations [N, 3 * depth + 2, width] → velocity [N, 32]."""
    shifts = modulations.unbind(-2)
    x = _product(x, head.input_proj)
    for index, block in enumerate(head.blocks):
        shift, scale, gate = shifts[3 * index : 3 * index + 3]
        into, out = block.mlp[0], block.mlp[2]
        hidden = _product(torch.addcmul(shift, block.in_ln(_for_each_output(x, into)), scale), into)
        x = torch.addcmul(x, gate, _product(F.silu(hidden), out))
    last = _for_each_output(x, head.output_proj)
    last = torch.addcmul(shifts[-2], F.layer_norm(last, last.shape[-1:], eps=1e-6), shifts[-1])
    return _product(last, head.output_proj)


def _for_each_output(x: Tensor, layer) -> Tensor:
    """[N, in] → [out, N, in]"""
    return x.expand(layer.weight.shape[0], *x.shape)


def _product(x: Tensor, layer) -> Tensor:
    """x [N, in], or [out, N, in] where each output has its own → [N, out]"""
    sums = (x.float() * layer.weight.float()[:, None]).sum(-1) + layer.bias.float()[:, None]
    return sums.T.to(x.dtype)
