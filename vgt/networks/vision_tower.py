"""The vision towers of the two model families: image -> one semantic vector a token of 28x28 pixels.

InternViT-300M as InternVL3 uses it and Qwen2.5-VL's tower (arXiv 2511.23469: VGT-AE starts from the
pretrained encoder of its vision-language model). Tensor names follow the published checkpoints, less their prefixes.

Layers come from `operations`: `torch.nn`, or a host's classes of the same signatures that cast weights as needed.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from ..config import TOKEN_PIXELS, InternVisionConfig, QwenVisionConfig
from .attention import attention

PATCH = TOKEN_PIXELS // 2
"""Side in pixels of a patch; a token is 2x2 patches."""


def normalise(pixels, mean, std):
    """(pixels - mean) / std for each channel of [B, 3, H, W], computed in float32, given in the dtype of `pixels`."""
    mean, std = (pixels.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
    return ((pixels.float() - mean) / std).to(pixels.dtype)


def split_heads(tensor, heads):
    """[B, L, heads * d] -> [B, heads, L, d]."""
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(tensor):
    """[B, heads, L, d] -> [B, L, heads * d]."""
    return tensor.transpose(1, 2).flatten(2)


# InternViT


class InternAttention(nn.Module):
    """Multi-head self-attention over the whole sequence."""

    def __init__(self, width, heads, *, operations, **factory):
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.proj = operations.Linear(width, width, **factory)

    def forward(self, x):
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.proj(join_heads(attention(q, k, v)))


class InternBlock(nn.Module):
    """Pre-norm transformer layer with layer scale."""

    def __init__(self, config: InternVisionConfig, *, operations, **factory):
        super().__init__()
        width = config.width
        self.norm1 = operations.LayerNorm(width, eps=1e-6, **factory)
        self.attn = InternAttention(width, config.heads, operations=operations, **factory)
        self.ls1 = nn.Parameter(torch.ones(width, **factory))
        self.norm2 = operations.LayerNorm(width, eps=1e-6, **factory)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=operations.Linear(width, config.mlp_width, **factory),
                act=nn.GELU(),
                fc2=operations.Linear(config.mlp_width, width, **factory),
            )
        )
        self.ls2 = nn.Parameter(torch.ones(width, **factory))

    def forward(self, x):
        x = torch.addcmul(x, self.attn(self.norm1(x)), self.ls1.to(x))
        return torch.addcmul(x, self.mlp(self.norm2(x)), self.ls2.to(x))


class InternVisionTower(nn.Module):
    """InternViT, 2x2 pixel shuffle and InternVL's projection `mlp1`.

    The learned position table is resized bicubically to the image's grid, which need not be square.
    """

    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(self, config: InternVisionConfig, semantic_width, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        width = config.width
        self.grid = config.grid
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width, **factory))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width, **factory))
        self.patch_embedding = operations.Conv2d(3, width, kernel_size=PATCH, stride=PATCH, **factory)
        self.layers = nn.ModuleList(InternBlock(config, operations=operations, **factory) for _ in range(config.depth))
        self.mlp1 = nn.Sequential(
            operations.LayerNorm(4 * width, **factory),
            operations.Linear(4 * width, semantic_width, **factory),
            nn.GELU(),
            operations.Linear(semantic_width, semantic_width, **factory),
        )

    def forward(self, pixels):
        """Semantic features of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of 28; their dtype is the one computed in.
        Returns [B, H/28 * W/28, semantic_width], tokens row by row.
        """
        patches = self.patch_embedding(normalise(pixels, self.MEAN, self.STD))
        rows, columns = patches.shape[-2:]
        class_token = self.class_embedding.to(patches).expand(len(patches), -1, -1)
        x = torch.cat((class_token, patches.flatten(2).transpose(1, 2)), dim=1)
        x = x + self.positions(rows, columns).to(x)
        for layer in self.layers:
            x = layer(x)
        # Pixel shuffle (InternVL's "v2"): a token's channels are those of its four patches, row by row.
        x = x[:, 1:].unflatten(1, (rows // 2, 2, columns // 2, 2)).transpose(2, 3)
        return self.mlp1(x.flatten(3, 5).flatten(1, 2))

    def positions(self, rows, columns):
        """Position embeddings of the class token and a grid of rows x columns patches: [1, 1 + rows*columns, width]."""
        table = self.position_embedding.float()
        grid = table[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((table[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)


# Qwen2.5-VL


def window_order(rows, columns, side, device=None):
    """Tokens of a rows x columns grid, window by window, windows of equal size together.

    Windows are squares of side x side tokens laid from the top left; the right and bottom edge may cut them. There are
    therefore at most four sizes: whole, cut right, cut below, cut both.

    Returns row-major token indices [rows * columns] in window order, and (number of windows, tokens in each) per size.
    """
    tokens = torch.arange(rows * columns, device=device).view(rows, columns)
    whole_rows, whole_columns = rows // side * side, columns // side * side
    order, groups = [], []
    for band, height in ((tokens[:whole_rows], side), (tokens[whole_rows:], rows - whole_rows)):
        for part, width in ((band[:, :whole_columns], side), (band[:, whole_columns:], columns - whole_columns)):
            if part.numel():
                windows = part.unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2)
                order.append(windows.flatten())
                groups.append((part.numel() // (height * width), height * width))
    return torch.cat(order), groups


def rotary_angles(token_rows, token_columns, head_width):
    """Angles of the 2-D rotary embedding: half of a head's frequencies turn with a patch's row, half with its column.

    token_rows, token_columns: [T], the tokens' places in the grid.
    Returns [4 * T, head_width / 2] float32 for the four patches of each token, row by row.
    """
    device = token_rows.device
    within = torch.arange(2, device=device)
    patch_rows = (2 * token_rows[:, None, None] + within[:, None]).expand(-1, 2, 2).flatten()
    patch_columns = (2 * token_columns[:, None, None] + within).expand(-1, 2, 2).flatten()
    half = head_width // 2
    frequencies = 10000.0 ** -(torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    return (torch.stack((patch_rows, patch_columns), dim=1).unsqueeze(-1) * frequencies).flatten(1)


def rotate(x, cos, sin):
    """Rotary embedding of x [B, L, heads, d] by cos and sin [L, 1, d / 2], computed in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class QwenAttention(nn.Module):
    """Multi-head self-attention within windows."""

    def __init__(self, width, heads, *, operations, **factory):
        super().__init__()
        self.heads = heads
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.proj = operations.Linear(width, width, **factory)

    def forward(self, x, cos, sin, groups):
        """x: [B, L, width], windows one after the other; groups: (number of windows, patches in each), as they come."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        parts, start = [], 0
        for count, length in groups:
            windows = (t[:, start : start + count * length].reshape(-1, length, *t.shape[2:]) for t in (q, k, v))
            parts.append(
                join_heads(attention(*(t.transpose(1, 2) for t in windows))).reshape(len(x), count * length, -1)
            )
            start += count * length
        return self.proj(torch.cat(parts, dim=1))


class QwenMLP(nn.Module):
    """SwiGLU with biases."""

    def __init__(self, width, hidden, *, operations, **factory):
        super().__init__()
        self.gate_proj = operations.Linear(width, hidden, **factory)
        self.up_proj = operations.Linear(width, hidden, **factory)
        self.down_proj = operations.Linear(hidden, width, **factory)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class QwenBlock(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: QwenVisionConfig, *, operations, **factory):
        super().__init__()
        self.norm1 = operations.RMSNorm(config.width, eps=1e-6, **factory)
        self.attn = QwenAttention(config.width, config.heads, operations=operations, **factory)
        self.norm2 = operations.RMSNorm(config.width, eps=1e-6, **factory)
        self.mlp = QwenMLP(config.width, config.mlp_width, operations=operations, **factory)

    def forward(self, x, cos, sin, groups):
        x = x + self.attn(self.norm1(x), cos, sin, groups)
        return x + self.mlp(self.norm2(x))


class QwenMerger(nn.Module):
    """Joins the four patches of a token and projects them to the language model's width."""

    def __init__(self, width, out_width, *, operations, **factory):
        super().__init__()
        self.ln_q = operations.RMSNorm(width, eps=1e-6, **factory)
        self.mlp = nn.Sequential(
            operations.Linear(4 * width, 4 * width, **factory),
            nn.GELU(),
            operations.Linear(4 * width, out_width, **factory),
        )

    def forward(self, x):
        """[B, 4 * T, width] -> [B, T, out_width]."""
        return self.mlp(self.ln_q(x).unflatten(1, (-1, 4)).flatten(2))


class QwenVisionTower(nn.Module):
    """Qwen2.5-VL's vision tower with its merger.

    Most layers attend within windows. The tokens are put in window order once; windows of equal size then go through
    attention as one batch, without masks or padding. Layers that attend to the whole image do not depend on the order.
    """

    MEAN = (0.48145466, 0.4578275, 0.40821073)
    STD = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, config: QwenVisionConfig, semantic_width, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.head_width = config.width // config.heads
        self.window = config.window // TOKEN_PIXELS
        self.full_attention = frozenset(config.full_attention)
        # The published Conv3d over two frames, its weight [width, 3, 2, 14, 14] flattened.
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=operations.Linear(3 * 2 * PATCH * PATCH, config.width, bias=False, **factory))
        )
        self.blocks = nn.ModuleList(QwenBlock(config, operations=operations, **factory) for _ in range(config.depth))
        self.merger = QwenMerger(config.width, semantic_width, operations=operations, **factory)

    def forward(self, pixels):
        """Semantic features of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of 28; their dtype is the one computed in.
        Returns [B, H/28 * W/28, semantic_width], tokens row by row.
        """
        rows, columns = (size // TOKEN_PIXELS for size in pixels.shape[-2:])
        order, windows = window_order(rows, columns, self.window, pixels.device)
        angles = rotary_angles(order // columns, order % columns, self.head_width).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        windows = [(count, 4 * tokens) for count, tokens in windows]
        whole = [(1, 4 * len(order))]

        x = self.patch_embed(self.patches(normalise(pixels, self.MEAN, self.STD))[:, order].flatten(1, 2))
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, whole if index in self.full_attention else windows)
        return self.merger(x)[:, order.argsort()]

    @staticmethod
    def patches(pixels):
        """[B, 3, H, W] -> [B, H/28 * W/28, 4, 1176]: a token's four patches, each as channel, time, y, x.

        The tower was made for video of two frames a patch; an image is two equal frames.
        """
        x = pixels.unflatten(3, (-1, 2, PATCH)).unflatten(2, (-1, 2, PATCH))  # B c  rows m y  columns n x
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # B  rows columns  m n  c time y x
        return x.expand(*(-1,) * 6, 2, -1, -1).reshape(len(pixels), -1, 4, 3 * 2 * PATCH * PATCH)
