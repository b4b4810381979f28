"""Muon (Keller Jordan, 2024) for processors on which bfloat16 is slow: PyTorch's own, orthogonalising in float32.

PyTorch's computes the Newton-Schulz iteration in bfloat16. A processor without units for it emulates each product, and
most of a step is then spent there. State and groups are those of PyTorch's, so a run may go on elsewhere with either.
"""

from __future__ import annotations

import math
import time
from functools import cache

import torch
from torch import Tensor

_SIDE = 384
_SLOW = 1.5
"""How much longer a product in bfloat16 must take than in float32."""


class Float32Muon(torch.optim.Muon):
    """torch.optim.Muon with `adjust_lr_fn` "match_rms_adamw", orthogonalising in float32."""

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient. closure: None; training has none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(parameter.grad))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(parameter.shape)))


def orthogonalised(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Bring all singular values of x [n, m] near 1, in its own dtype, by a quintic Newton-Schulz iteration."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


@cache
def bfloat16_is_slow(device_type: str) -> bool:
    """Measure whether products in bfloat16 take longer than in float32: on a CPU without units for them, many times."""
    if device_type != "cpu":
        return False
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(_SIDE, _SIDE, dtype=dtype)
        for _ in range(4):
            start = time.perf_counter()
            x @ x
            best[dtype] = min(best.get(dtype, math.inf), time.perf_counter() - start)
    return best[torch.bfloat16] > _SLOW * best[torch.float32]
