"""The one place that decides how attention is computed."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_MAX_HEAD_WIDTH = 256
_FLASH_CAPABILITY = (8, 0)  # Ampere

MASKED = 2**23
"""Entries of a mask (query heads of a key head x queries x keys) that are made at once: 17 MB in bf16."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Scaled dot product attention with grouped key/value heads.

    Args:
        q: [B, heads, m, d].
        k, v: [B, kv_heads, n, d], heads a multiple of kv_heads: query head i reads key head i * kv_heads // heads.
        mask: bool, broadcastable to [B, 1, m, n], True where a key is seen, or what `prepare_mask` made of one; None
            for all.
        causal: the m queries are the last m of the n keys, and each sees no key after itself. Not together with a mask.

    Returns [B, heads, m, d].
    """
    m, n = q.shape[2], k.shape[2]
    # Not the language model's, whose kernel must be the same with a mask, as in CUDA graphs, and without one.
    if mask is None and not causal and (flash := _flash("flash_attn_func", q.device, q.dtype, q.shape[-1])):
        return flash(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    causal = causal and m > 1  # a single last query sees everything
    groups = q.shape[1] // k.shape[1]
    if causal and m == n and (groups == 1 or torch.is_grad_enabled()):  # training: fast, at the price of copies
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v)) if groups > 1 else (k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if (causal or mask is not None) and groups * m * n > MASKED:
        return _in_blocks(q, k, v, mask, causal)
    if causal:
        mask = causal_mask(m, n, q.device)
    if mask is not None and mask.dtype == torch.bool:
        mask = prepare_mask(mask, m, groups, q.dtype)
    # Lay the heads of a group along the query axis, so that no key or value is copied.
    folded = q.reshape(q.shape[0], k.shape[1], groups * m, q.shape[3])
    return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).reshape(q.shape)


def causal_mask(m: int, n: int, device) -> Tensor:
    """bool [1, 1, m, n]: each of the last m of n places sees those up to itself."""
    return torch.ones(1, 1, m, n, dtype=torch.bool, device=device).tril(n - m)


def prepare_mask(mask: Tensor, m: int, groups: int, dtype: torch.dtype) -> Tensor:
    """A mask as the kernels take it, for all layers: bool [B or 1, 1, m or 1, n] → [B or 1, 1, groups * m, n].

    0 where a key is seen and -inf where not, in rows that are aligned in memory; from a bool mask each call would make
    one of its own.
    """
    n = mask.shape[-1]
    aligned = -(-n // 16) * 16
    prepared = torch.full((*mask.shape[:-2], groups, m, aligned), -torch.inf, dtype=dtype, device=mask.device)[..., :n]
    return prepared.masked_fill_(mask.unsqueeze(-3), 0).flatten(-3, -2)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """So many queries at a time that their mask stays small, each block with the keys it can see."""
    m, n = q.shape[2], k.shape[2]
    size = max(1, MASKED // (q.shape[1] // k.shape[1] * n))
    out = torch.empty_like(q)
    for first in range(0, m, size):
        last = min(first + size, m)
        end = n - m + last if causal else n
        own = mask if mask is None or mask.shape[-2] == 1 else mask[..., first:last, :]
        out[:, :, first:last] = attention(q[:, :, first:last], k[:, :, :end], v[:, :, :end], own, causal)
    return out


def decodes_with_flash(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether `flash_decoding` can be had."""
    return _flash("flash_attn_with_kvcache", device, dtype, head_width) is not None


def flash_decoding(q: Tensor, keys: Tensor, values: Tensor, used: Tensor) -> Tensor:
    """Attention over the used slots of a cache, without a mask: what lies behind them is not read.

    Args:
        q: [B, heads, m, d]; the last m used slots are its own, and each sees no slot after that.
        keys, values: [B, kv_heads, slots, d].
        used: int32 [B], how many of the slots.

    Returns [B, heads, m, d].
    """
    q, keys, values = q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    return _imported("flash_attn_with_kvcache")(q, keys, values, cache_seqlens=used, causal=True).transpose(1, 2)


def _flash(name: str, device: torch.device, dtype: torch.dtype, head_width: int):
    """A function of flash-attn, where it is installed and takes such heads."""
    if device.type != "cuda" or dtype not in _FLASH_DTYPES or head_width > _FLASH_MAX_HEAD_WIDTH:
        return None
    function = _imported(name)
    return function if function and torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY else None


@cache
def _imported(name: str):
    """A function of flash-attn, imported when first asked for; None where it is absent or built for another torch."""
    try:
        import flash_attn

        return getattr(flash_attn, name)
    except Exception:
        return None
