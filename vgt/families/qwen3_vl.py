"""Qwen3-VL, dense (arXiv 2511.21631). A token is 32 pixels wide, as many as the pixel decoder makes of it.

What its tower gives the language model's first layers beside the image features (DeepStack) has no part in VGT: latents
take the place of the features, and there are none of those for what is yet to be drawn.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..config import LanguageModelConfig
from ..files.config_check import check_number
from ..files.sizes import Sizes, heads_of, merge_of
from ..networks.vision_parts import FRAMES, RotaryAttention, normalise, rotary_angles, token_patches
from ._family import language_table
from ._qwen_vocabulary import QWEN3_TOKENS, build_tokenizer
from .qwen2_5_vl import Qwen2_5VL

# The vision tower


@dataclass(frozen=True)
class Qwen3VisionConfig:
    """Qwen3-VL's vision tower: learned positions, 2-D rotary, full attention."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    grid: int = 48
    """Side, in patches, of the learned position table."""
    patch: int = 16
    merge: int = 2

    @property
    def token_pixels(self) -> int:
        return self.patch * self.merge

    def build(self, semantic_width: int, **options) -> Qwen3VisionTower:
        return Qwen3VisionTower(self, semantic_width, **options)


class Qwen3MLP(nn.Module):
    """Two layers with biases."""

    def __init__(self, width, hidden, *, operations, **factory):
        super().__init__()
        self.linear_fc1 = operations.Linear(width, hidden, **factory)
        self.linear_fc2 = operations.Linear(hidden, width, **factory)

    def forward(self, x):
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class Qwen3Block(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: Qwen3VisionConfig, *, operations, **factory):
        super().__init__()
        self.norm1 = operations.LayerNorm(config.width, eps=1e-6, **factory)
        self.attn = RotaryAttention(config.width, config.heads, operations=operations, **factory)
        self.norm2 = operations.LayerNorm(config.width, eps=1e-6, **factory)
        self.mlp = Qwen3MLP(config.width, config.mlp_width, operations=operations, **factory)

    def forward(self, x, cos, sin, groups):
        x = x + self.attn(self.norm1(x), cos, sin, groups)
        return x + self.mlp(self.norm2(x))


class Qwen3Merger(nn.Module):
    """Joins the patches of a token and projects them to the language model's width."""

    def __init__(self, width, patches, out_width, *, operations, **factory):
        super().__init__()
        self.patches = patches
        self.norm = operations.LayerNorm(width, eps=1e-6, **factory)
        self.linear_fc1 = operations.Linear(patches * width, patches * width, **factory)
        self.linear_fc2 = operations.Linear(patches * width, out_width, **factory)

    def forward(self, x):
        """[B, T * patches, width] -> [B, T, out_width]."""
        x = rearrange(self.norm(x), "b (t patches) d -> b t (patches d)", patches=self.patches)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class Qwen3VisionTower(nn.Module):
    """Qwen3-VL's vision tower with its merger.

    The learned position table is resized bilinearly, corners on corners, to the image's grid, which need not be square.
    """

    MEAN = STD = (0.5, 0.5, 0.5)

    def __init__(self, config: Qwen3VisionConfig, semantic_width, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        width = config.width
        # The published Conv3d over two frames, its weight [width, 3, 2, patch, patch] flattened.
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=operations.Linear(3 * FRAMES * config.patch**2, width, **factory))
        )
        self.pos_embed = operations.Embedding(config.grid**2, width, **factory)
        self.blocks = nn.ModuleList(Qwen3Block(config, operations=operations, **factory) for _ in range(config.depth))
        self.merger = Qwen3Merger(width, config.merge**2, semantic_width, operations=operations, **factory)

    def forward(self, pixels):
        """Semantic features of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of a token's pixels; their dtype is the one computed in.
        Returns [B, tokens, semantic_width], tokens row by row.
        """
        config = self.config
        rows, columns = (size // config.token_pixels for size in pixels.shape[-2:])
        tokens = torch.arange(rows * columns, device=pixels.device)
        head_width = config.width // config.heads
        angles = rotary_angles(tokens // columns, tokens % columns, head_width, config.merge).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()

        x = token_patches(normalise(pixels, self.MEAN, self.STD), config.patch, config.merge)
        x = self.patch_embed(x.flatten(1, 2)) + self.positions(rows, columns, pixels.device).to(pixels)
        for block in self.blocks:
            x = block(x, cos, sin, [(1, x.shape[1])])
        return self.merger(x)

    def positions(self, rows, columns, device=None):
        """Position embeddings of the patches of rows x columns tokens, token by token: [1, patches, width], float32."""
        merge, side = self.config.merge, self.config.grid
        table = self.pos_embed(torch.arange(side**2, device=device)).float()
        grid = rearrange(table, "(rows columns) d -> 1 d rows columns", rows=side)
        grid = F.interpolate(grid, size=(rows * merge, columns * merge), mode="bilinear", align_corners=True)
        return rearrange(grid, "1 d (rows m) (columns n) -> 1 (rows columns m n) d", m=merge, n=merge)


# The family


class Qwen3VL(Qwen2_5VL):
    name = "qwen3_vl"
    title = "Qwen3-VL"

    base_types = ("qwen3_vl",)
    unused = ("model.visual.deepstack_merger_list.", "visual.deepstack_merger_list.", "encoder.deepstack_merger_list.")

    vision_config = Qwen3VisionConfig
    miniature = Qwen3VisionConfig(width=32, depth=2, heads=2, mlp_width=48, grid=4)
    language_variant = {"qkv_bias": False, "qk_norm": True}
    published_vision_heads = {1024: 16, 1152: 16}
    published_heads = {2048: (16, 8), 2560: (32, 8), 4096: (32, 8)}
    rotary_base = 5e6

    counts_padding = False
    caption = None  # which would need DeepStack's features

    def reads_published(self, names: Mapping, config: dict) -> bool:
        return "encoder.patch_embed.proj.weight" in names and "encoder.pos_embed.weight" in names

    def read_vision(self, sizes: Sizes, config: dict) -> Qwen3VisionConfig:
        width, columns = sizes.shape("patch_embed.proj.weight", 2)
        return Qwen3VisionConfig(
            width=width,
            depth=sizes.count("blocks."),
            heads=heads_of(config, "num_heads", width, self.published_vision_heads),
            mlp_width=sizes.shape("blocks.0.mlp.linear_fc1.weight", 2)[0],
            grid=math.isqrt(sizes.shape("pos_embed.weight", 2)[0]),
            patch=math.isqrt(columns // (3 * FRAMES)),
            merge=merge_of(sizes, "merger.linear_fc1.bias", width),
        )

    def check_vision(self, vision: Qwen3VisionConfig) -> None:
        check_number("vision tower grid", vision.grid, 1024)
        if vision.width // vision.heads % 4:
            raise ValueError(f"{vision.heads} heads for a vision tower of width {vision.width} cannot be")

    def hub_config(self, vision: Qwen3VisionConfig, language: LanguageModelConfig, ids: Mapping) -> dict:
        half = language.head_width // 2
        spatial = half * 5 // 16  # 24, 20, 20 of 64 as published
        parts = [half - 2 * spatial, spatial, spatial]
        rotary = {"rope_type": "default", "mrope_section": parts, "mrope_interleaved": True}
        return {
            "model_type": "qwen3_vl",
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "tie_word_embeddings": True,
            "image_token_id": ids["<|image_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "text_config": {"model_type": "qwen3_vl_text", **language_table(language), "rope_scaling": rotary},
            "vision_config": {
                "model_type": "qwen3_vl",
                "hidden_size": vision.width,
                "depth": vision.depth,
                "num_heads": vision.heads,
                "intermediate_size": vision.mlp_width,
                "out_hidden_size": language.width,
                "num_position_embeddings": vision.grid**2,
                "patch_size": vision.patch,
                "spatial_merge_size": vision.merge,
                "deepstack_visual_indexes": [],
            },
        }

    def host_tokenizer(self, folder: Path) -> bytes:
        return build_tokenizer(folder, QWEN3_TOKENS)


FAMILY = Qwen3VL()
