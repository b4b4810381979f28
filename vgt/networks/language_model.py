"""The language model: a decoder as Qwen2.5's and Qwen3's, with a preallocated KV cache.

A rotary embedding in parts, of time, row and column, equals the plain one here: all inputs carry one position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import LanguageModelConfig
from .attention import MASKED, attention, causal_mask, flash_decoding, prepare_mask


class KVCache:
    """Keys and values of all layers, allocated once per run.

    Attributes `keys` and `values`: [depth, rows, kv_heads, slots, head_width]. Slots are written in place and may be
    written again; what a step may see is decided by whoever feeds it.
    """

    def __init__(self, config: LanguageModelConfig, rows: int, slots: int, device, dtype):
        shape = (config.depth, rows, config.kv_heads, slots, config.head_width)
        self.slots = slots
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.clear()

    def clear(self) -> None:
        """Zeros everywhere: a masked slot is multiplied by 0, and what memory or an earlier run left may be NaN."""
        self.keys.zero_()
        self.values.zero_()

    def load(self, keys: Tensor, values: Tensor) -> None:
        """Fill the first slots with keys and values [depth, rows, kv_heads, n, head_width] of an earlier run."""
        self.keys[..., : keys.shape[3], :].copy_(keys)
        self.values[..., : values.shape[3], :].copy_(values)

    def write(self, layer: int, slot: int | Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k, v [rows, kv_heads, m, head_width] at slots slot … slot+m-1 and return all up to there; or, slot being
        int64 [m], at those slots, and return the whole cache. Fewer rows than it has are its first ones.
        """
        return _write(*self.layer(layer, len(k)), slot, k, v)

    def layer(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first rows of a layer, [rows, kv_heads, slots, head_width]."""
        return self.keys[layer, :rows], self.values[layer, :rows]


def _write(keys: Tensor, values: Tensor, slot: int | Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """See KVCache.write."""
    if isinstance(slot, Tensor):
        return keys.index_copy_(2, slot, k), values.index_copy_(2, slot, v)
    end = slot + k.shape[2]
    keys[:, :, slot:end] = k
    values[:, :, slot:end] = v
    return keys[:, :, :end], values[:, :, :end]


def rotary_table(config: LanguageModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, 1, n, head_width], float32, for positions [rows, n] (RoPE, halves rotated).

    The sines of the first half have their sign changed, as a rotation takes them.
    """
    exponent = torch.arange(0, config.head_width, 2, device=positions.device, dtype=torch.float32) / config.head_width
    angles = positions[:, None, :, None].float() * config.rope_theta**-exponent
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # In this order what comes out lies head by head, and queries of a group need no copy to be laid side by side.
    return torch.addcmul(x.roll(x.shape[-1] // 2, -1) * sin, x, cos)


LONG = 2048
"""Inputs of a row that go through an MLP at once."""


class _SelfAttention(nn.Module):
    def __init__(self, config: LanguageModelConfig, operations, **factory):
        super().__init__()
        self.splits = [config.heads, config.kv_heads, config.kv_heads]
        self.head_width = config.head_width
        rows = sum(self.splits) * config.head_width
        self.qkv_proj = operations.Linear(config.width, rows, bias=config.qkv_bias, **factory)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = operations.RMSNorm(config.head_width, eps=config.eps, **factory)
            self.k_norm = operations.RMSNorm(config.head_width, eps=config.eps, **factory)
        self.o_proj = operations.Linear(config.heads * config.head_width, config.width, bias=False, **factory)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        kept: tuple[Tensor, Tensor] | None,
        slot: int | Tensor,
        mask: Tensor | None,
        used: Tensor | None,
    ):
        rows, m, _ = x.shape
        q, k, v = self.project(x, cos, sin)
        if kept is not None:
            k, v = _write(*kept, slot, k, v)
        out = attention(q, k, v, mask, causal=mask is None) if used is None else flash_decoding(q, k, v, used)
        return self.o_proj(out.transpose(1, 2).reshape(rows, m, -1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [rows, heads or kv_heads, m, head_width] of x [rows, m, width]."""
        rows, m, _ = x.shape
        qkv = self.qkv_proj(x).view(rows, m, -1, self.head_width).transpose(1, 2)
        q, k, v = qkv.split(self.splits, dim=1)
        if self.q_norm is not None:
            return _rotate(self.q_norm(q), cos, sin), _rotate(self.k_norm(k), cos, sin), v
        # both at once: they lie side by side
        q, k = _rotate(qkv[:, : sum(self.splits[:2])], cos, sin).split(self.splits[:2], dim=1)
        return q, k, v


class _MLP(nn.Module):
    def __init__(self, config: LanguageModelConfig, operations, **factory):
        super().__init__()
        self.gate_up_proj = operations.Linear(config.width, 2 * config.mlp_width, bias=False, **factory)
        self.down_proj = operations.Linear(config.mlp_width, config.width, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > LONG:  # a picture to repaint: its hidden values are several times its other activations
            return torch.cat([self.forward(part) for part in x.split(LONG, dim=1)], dim=1)
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(nn.functional.silu(gate) * up)


class _Layer(nn.Module):
    def __init__(self, config: LanguageModelConfig, operations, **factory):
        super().__init__()
        self.input_layernorm = operations.RMSNorm(config.width, eps=config.eps, **factory)
        self.self_attn = _SelfAttention(config, operations, **factory)
        self.post_attention_layernorm = operations.RMSNorm(config.width, eps=config.eps, **factory)
        self.mlp = _MLP(config, operations, **factory)

    def forward(self, x: Tensor, *attention_inputs) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *attention_inputs)
        return x + self.mlp(self.post_attention_layernorm(x))


def run_layer(layer: _Layer, x: Tensor, *attention_inputs) -> Tensor:
    """A layer as a function, which torch.compile compiles once for all layers."""
    return layer(x, *attention_inputs)


class LanguageModel(nn.Module):
    """A decoder without its output head: VGT reads hidden states, never next-word logits."""

    def __init__(self, config: LanguageModelConfig, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.embed_tokens = operations.Embedding(config.vocabulary, config.width, **factory)
        self.layers = nn.ModuleList(_Layer(config, operations, **factory) for _ in range(config.depth))
        self.norm = operations.RMSNorm(config.width, eps=config.eps, **factory)
        self.checkpointing = False
        """In training: keep only what goes into each layer, and compute the rest again for the gradients."""

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What `forward` needs to know of positions, int64 [rows, n]: two tensors, n at their dimension 2."""
        cos, sin = rotary_table(self.config, positions)
        return cos.to(dtype), sin.to(dtype)

    def forward(
        self,
        embeds: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None,
        slot: int | Tensor = 0,
        mask: Tensor | None = None,
        run_layer: Callable[..., Tensor] = run_layer,
    ) -> Tensor:
        """Feed m inputs at cache slots slot … slot+m-1, or at the slots that an int64 [m] names.

        Args:
            embeds: [rows, m, width].
            rotary: cosines and sines, each [rows, 1, m, head_width], in the dtype of embeds.
            cache: written in place; None: the inputs see one another only (slot 0), and gradients flow.
            mask: bool [rows or 1, 1, m, slot+m (all slots where they are named)], True = seen; None: each input sees
                all slots up to its own. Where slots are named, None takes flash-attn (attention.flash_decoding).
            run_layer: what calls each layer, the function of this file or the same compiled.

        Returns the hidden states after the final norm, [rows, m, width].
        """
        cos, sin = rotary
        used = None
        if mask is None and isinstance(slot, Tensor):
            used = (slot[-1:] + 1).to(torch.int32).expand(len(embeds)).contiguous()
        elif cache is not None:
            mask = self._mask(mask, embeds, slot)
        for index, layer in enumerate(self.layers):
            kept = None if cache is None else cache.layer(index, len(embeds))
            inputs = (embeds, cos, sin, kept, slot, mask, used)
            if self.checkpointing and torch.is_grad_enabled():
                embeds = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                embeds = run_layer(layer, *inputs)
        return self.norm(embeds)

    def _mask(self, mask: Tensor | None, embeds: Tensor, slot: int | Tensor) -> Tensor | None:
        """The mask of a step, made once for all layers; as it is where it would be too large."""
        m, groups = embeds.shape[1], self.config.heads // self.config.kv_heads
        n = slot + m if mask is None else mask.shape[-1]
        if (mask is None and m == 1) or groups * m * n > MASKED:
            return mask
        return prepare_mask(causal_mask(m, n, embeds.device) if mask is None else mask, m, groups, embeds.dtype)
