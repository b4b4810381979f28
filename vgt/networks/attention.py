"""The one place that decides how attention is computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from flash_attn import flash_attn_func
except Exception:  # absent, or built for another torch: either way it is optional
    flash_attn_func = None

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_MAX_HEAD_WIDTH = 256
_FLASH_CAPABILITY = (8, 0)  # Ampere


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot product attention with grouped key/value heads.

    Args:
        q: [B, heads, m, d].
        k, v: [B, kv_heads, n, d], heads a multiple of kv_heads: query head i reads key head i * kv_heads // heads.
        mask: bool, broadcastable to [B, 1, m, n], True where a key is seen; None for all.
        causal: the m queries are the last m of the n keys, and each sees no key after itself. Not together with a mask.

    Returns [B, heads, m, d].
    """
    m, n = q.shape[2], k.shape[2]
    # Not the language model's: with a mask, as in CUDA graphs, and without one it must be the same kernel.
    if flash_attn_func is not None and mask is None and not causal and _flash_allows(q):
        return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    causal = causal and m > 1  # a single last query sees everything
    if causal and m != n:
        mask = torch.ones(m, n, dtype=torch.bool, device=q.device).tril(n - m)
        causal = False
    groups = q.shape[1] // k.shape[1]
    if groups == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if causal:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    # Lay the heads of a group along the query axis, so that no key or value is copied.
    folded = q.reshape(q.shape[0], k.shape[1], groups * m, q.shape[3])
    if mask is not None:
        mask = torch.cat([mask.expand(*mask.shape[:-2], m, n)] * groups, dim=-2)
    return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).reshape(q.shape)


def _flash_allows(q: Tensor) -> bool:
    return (
        q.is_cuda
        and q.dtype in _FLASH_DTYPES
        and q.shape[-1] <= _FLASH_MAX_HEAD_WIDTH
        and torch.cuda.get_device_capability(q.device) >= _FLASH_CAPABILITY
    )
