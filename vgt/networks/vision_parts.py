"""Parts that the vision towers of several families are made of. The towers themselves: vgt/families.

Layers come from `operations`: `torch.nn`, or a host's classes of the same signatures that cast weights as needed.
"""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import nn

from .attention import attention

FRAMES = 2
"""Frames in a patch of a tower that was made for video: an image is so many equal frames."""


def normalise(pixels, mean, std):
    """(pixels - mean) / std for each channel of [B, 3, H, W], computed in float32, given in the dtype of `pixels`."""
    mean, std = (pixels.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
    return ((pixels.float() - mean) / std).to(pixels.dtype)


def split_heads(tensor, heads):
    """[B, L, heads * d] -> [B, heads, L, d]."""
    return rearrange(tensor, "b l (heads d) -> b heads l d", heads=heads)


def join_heads(tensor):
    """[B, heads, L, d] -> [B, L, heads * d]."""
    return rearrange(tensor, "b heads l d -> b l (heads d)")


def token_patches(pixels, patch, merge):
    """The patches of each token, flattened as a tower for video takes them.

    pixels: [B, 3, H, W], H and W multiples of patch * merge.
    Returns [B, tokens, merge², 3 * FRAMES * patch²]: tokens row by row, a token's patches row by row, each as channel,
    time, y, x.
    """
    return repeat(
        pixels,
        "b c (rows m y) (columns n x) -> b (rows columns) (m n) (c time y x)",
        m=merge, n=merge, y=patch, x=patch, time=FRAMES,
    )  # fmt: skip


def rotary_angles(token_rows, token_columns, head_width, merge=2):
    """Angles of the 2-D rotary embedding: half of a head's frequencies turn with a patch's row, half with its column.

    token_rows, token_columns: [T], the tokens' places in the grid; a token is merge x merge patches.
    Returns [merge² * T, head_width / 2] float32 for the patches of each token, row by row.
    """
    device = token_rows.device
    within = torch.arange(merge, device=device)
    rows = repeat(merge * token_rows[:, None] + within, "t m -> (t m n)", n=merge)
    columns = repeat(merge * token_columns[:, None] + within, "t n -> (t m n)", m=merge)
    half = head_width // 2
    frequencies = 10000.0 ** -(torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    return (torch.stack((rows, columns), dim=1).unsqueeze(-1) * frequencies).flatten(1)


def rotate(x, cos, sin):
    """Rotary embedding of x [B, L, heads, d] by cos and sin [L, 1, d / 2], computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class RotaryAttention(nn.Module):
    """Multi-head self-attention with a rotary embedding, within windows."""

    def __init__(self, width, heads, *, operations, **factory):
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.proj = operations.Linear(width, width, **factory)

    def forward(self, x, cos, sin, groups):
        """x: [B, L, width], windows one after the other; groups: (number of windows, patches in each), as they come."""
        q, k, v = rearrange(self.qkv(x), "b l (part heads d) -> part b l heads d", part=3, heads=self.heads)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        parts, start = [], 0
        for count, length in groups:
            windows = (
                rearrange(part[:, start : start + count * length], "b (w l) heads d -> (b w) heads l d", w=count)
                for part in (q, k, v)
            )
            parts.append(rearrange(attention(*windows), "(b w) heads l d -> b (w l) (heads d)", w=count))
            start += count * length
        return self.proj(torch.cat(parts, dim=1))
