"""The pixel decoder of VGT-AE: DC-AE f32c32 (arXiv 2410.10733, in the form of SANA 1.1), latent -> pixels.

Tensor names follow the published checkpoints below `decoder.`. Everything runs channels-last, so that normalisation
over channels and the attention's projections read rows that lie together and nothing is copied to be transposed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import LATENT_CHANNELS, PixelDecoderConfig


class ChannelRMSNorm(nn.Module):
    """RMSNorm over the channels of [B, C, H, W], with scale and bias."""

    def __init__(self, channels, *, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(channels, device=device, dtype=dtype))

    def forward(self, x):
        x = F.rms_norm(x.movedim(1, -1), self.weight.shape, eps=1e-5)
        return torch.addcmul(self.bias.to(x), x, self.weight.to(x)).movedim(-1, 1)


class ResBlock(nn.Module):
    """x + norm(conv(silu(conv(x)))), the block of the high-resolution stages."""

    def __init__(self, channels, *, operations, **factory):
        super().__init__()
        self.conv1 = operations.Conv2d(channels, channels, 3, padding=1, **factory)
        self.conv2 = operations.Conv2d(channels, channels, 3, padding=1, bias=False, **factory)
        self.norm = ChannelRMSNorm(channels, **factory)

    def forward(self, x):
        return x + self.norm(self.conv2(F.silu(self.conv1(x), inplace=True)))


class MultiScale(nn.Module):
    """A second view of q, k and v: a depthwise convolution, then one 1x1 convolution for each head's q, k and v."""

    def __init__(self, channels, head_width, kernel, *, operations, **factory):
        super().__init__()
        self.proj_in = operations.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False, **factory
        )
        self.proj_out = operations.Conv2d(channels, channels, 1, groups=channels // head_width, bias=False, **factory)

    def forward(self, x):
        return self.proj_out(self.proj_in(x))


class LinearAttention(nn.Module):
    """x + norm(multi-scale ReLU linear attention(x)); half of the heads read the plain projection, half the 5x5 one."""

    def __init__(self, channels, head_width, kernel, *, operations, **factory):
        super().__init__()
        self.head_width = head_width
        self.to_q = operations.Linear(channels, channels, bias=False, **factory)
        self.to_k = operations.Linear(channels, channels, bias=False, **factory)
        self.to_v = operations.Linear(channels, channels, bias=False, **factory)
        multiscale = MultiScale(3 * channels, head_width, kernel, operations=operations, **factory)
        self.to_qkv_multiscale = nn.ModuleList([multiscale])
        self.to_out = operations.Linear(2 * channels, channels, bias=False, **factory)
        self.norm_out = ChannelRMSNorm(channels, **factory)

    def forward(self, x):
        rows = x.movedim(1, -1)
        qkv = torch.cat((self.to_q(rows), self.to_k(rows), self.to_v(rows)), dim=-1).movedim(-1, 1)
        qkv = torch.cat((qkv, self.to_qkv_multiscale[0](qkv)), dim=1)
        # The weights are one qkv projection cut in three: a head is 3 * head_width consecutive channels of the whole,
        # wherever the cuts between to_q, to_k and to_v fall.
        heads = rearrange(qkv, "b (heads d) y x -> b heads (y x) d", d=3 * self.head_width)
        out = relu_linear_attention(*heads.float().chunk(3, dim=-1)).to(x.dtype)
        out = rearrange(out, "b heads (y x) d -> b y x (heads d)", y=x.shape[2])
        return x + self.norm_out(self.to_out(out).movedim(-1, 1))


def relu_linear_attention(q, k, v):
    """Attention with the kernel relu(q)·relu(k) in place of a softmax: linear in the number of pixels.

    q, k, v: [B, heads, pixels, d], float32, because the sums run over a whole image. Returns the same shape.
    """
    q, k = F.relu(q), F.relu(k)
    with torch.autocast(q.device.type, enabled=False):  # training in bf16 must not lower the sums
        total = q @ k.sum(dim=2).unsqueeze(-1)
        return q @ (k.transpose(2, 3) @ v) / (total + 1e-15)


class GLUMBConv(nn.Module):
    """x + norm(inverted bottleneck with a gated depthwise convolution), the feed-forward part of EfficientViT."""

    def __init__(self, channels, *, operations, **factory):
        super().__init__()
        hidden = 4 * channels
        self.conv_inverted = operations.Conv2d(channels, 2 * hidden, 1, **factory)
        self.conv_depth = operations.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, **factory)
        self.conv_point = operations.Conv2d(hidden, channels, 1, bias=False, **factory)
        self.norm = ChannelRMSNorm(channels, **factory)

    def forward(self, x):
        value, gate = self.conv_depth(F.silu(self.conv_inverted(x))).chunk(2, dim=1)
        return x + self.norm(self.conv_point(value * F.silu(gate)))


class EfficientViTBlock(nn.Module):
    """Linear attention, then the gated convolution: the block of the low-resolution stages."""

    def __init__(self, channels, head_width, kernel, *, operations, **factory):
        super().__init__()
        self.attn = LinearAttention(channels, head_width, kernel, operations=operations, **factory)
        self.conv_out = GLUMBConv(channels, operations=operations, **factory)

    def forward(self, x):
        return self.conv_out(self.attn(x))


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour and a convolution, plus a shortcut that spreads channels over pixels.

    The shortcut repeats every channel `4 * out / in` times and shuffles groups of four into 2x2 pixels. A square of
    pixels thus holds `in / out` different channels, 1, 2 or 4, and broadcasting adds them without making the copies.
    """

    def __init__(self, in_channels, out_channels, *, operations, **factory):
        super().__init__()
        if in_channels not in (out_channels, 2 * out_channels, 4 * out_channels):
            raise ValueError(f"cannot upsample {in_channels} channels to {out_channels}: not 1, 2 or 4 times as many")
        distinct = in_channels // out_channels
        self.square = (min(distinct, 2), max(distinct // 2, 1))
        self.conv = operations.Conv2d(in_channels, out_channels, 3, padding=1, **factory)

    def forward(self, x):
        wide = F.interpolate(x, scale_factor=2, mode="nearest")
        out = self.conv(wide)
        p, q = self.square
        if p * q == 1:  # the same as below, and its gradient needs no sum over squares
            return out + wide
        shortcut = rearrange(x, "b (c p q) y x -> b c y p x q", p=p, q=q)
        out = rearrange(out, "b c (y p) (x q) -> b c y p x q", p=2, q=2) + shortcut
        return rearrange(out, "b c y p x q -> b c (y p) (x q)")


class PixelDecoder(nn.Module):
    """The DC-AE f32c32 decoder."""

    def __init__(self, config: PixelDecoderConfig, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"operations": operations, "device": device, "dtype": dtype}
        layer_factory = {"device": device, "dtype": dtype}
        widths = config.widths
        self.conv_in = operations.Conv2d(LATENT_CHANNELS, widths[-1], 3, padding=1, **layer_factory)
        self.up_blocks = nn.ModuleList()
        for stage, (width, blocks, attention) in enumerate(zip(widths, config.blocks, config.attention, strict=True)):
            layers = [Upsample(widths[stage + 1], width, **factory)] if stage + 1 < len(widths) else []
            for _ in range(blocks):
                if attention:
                    layers.append(EfficientViTBlock(width, config.head_width, config.kernel, **factory))
                else:
                    layers.append(ResBlock(width, **factory))
            self.up_blocks.append(nn.Sequential(*layers))
        self.norm_out = ChannelRMSNorm(widths[0], **layer_factory)
        self.conv_out = operations.Conv2d(widths[0], 3, 3, padding=1, **layer_factory)

    def forward(self, latent):
        """Pixels of a latent.

        latent: [B, 32, h, w], channel normalised; its dtype is the one computed in.
        Returns [B, 3, 32h, 32w], about [-1, 1], not clamped.
        """
        latent = latent.contiguous(memory_format=torch.channels_last)
        x = self.conv_in(latent)
        x = x + latent.repeat_interleave(x.shape[1] // latent.shape[1], dim=1)
        for stage in reversed(self.up_blocks):
            x = stage(x)
        return self.conv_out(F.relu(self.norm_out(x)))
