"""Qwen2.5-VL (arXiv 2502.13923)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import LanguageModelConfig
from ..files.config_check import check_number
from ..files.sizes import Sizes, heads_of, merge_of
from ..networks.vision_parts import FRAMES, RotaryAttention, normalise, rotary_angles, token_patches
from ..prompt import CaptionTemplate
from ._family import Family, language_table
from ._qwen_vocabulary import HOST_FOLDER, build_tokenizer

# The vision tower


@dataclass(frozen=True)
class QwenVisionConfig:
    """Qwen2.5-VL's vision tower: window attention except in some layers."""

    width: int = 1280
    depth: int = 32
    heads: int = 16
    mlp_width: int = 3420
    window: int = 112
    """Side of an attention window in pixels."""
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    """Layers that attend to the whole image."""
    patch: int = 14
    merge: int = 2

    @property
    def token_pixels(self) -> int:
        return self.patch * self.merge

    def build(self, semantic_width: int, **options) -> QwenVisionTower:
        return QwenVisionTower(self, semantic_width, **options)


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
                order.append(rearrange(part, "(down y) (across x) -> (down across y x)", y=height, x=width))
                groups.append((part.numel() // (height * width), height * width))
    return torch.cat(order), groups


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
        self.attn = RotaryAttention(config.width, config.heads, operations=operations, **factory)
        self.norm2 = operations.RMSNorm(config.width, eps=1e-6, **factory)
        self.mlp = QwenMLP(config.width, config.mlp_width, operations=operations, **factory)

    def forward(self, x, cos, sin, groups):
        x = x + self.attn(self.norm1(x), cos, sin, groups)
        return x + self.mlp(self.norm2(x))


class QwenMerger(nn.Module):
    """Joins the patches of a token and projects them to the language model's width."""

    def __init__(self, width, patches, out_width, *, operations, **factory):
        super().__init__()
        self.patches = patches
        self.ln_q = operations.RMSNorm(width, eps=1e-6, **factory)
        self.mlp = nn.Sequential(
            operations.Linear(patches * width, patches * width, **factory),
            nn.GELU(),
            operations.Linear(patches * width, out_width, **factory),
        )

    def forward(self, x):
        """[B, T * patches, width] -> [B, T, out_width]."""
        return self.mlp(rearrange(self.ln_q(x), "b (t patches) d -> b t (patches d)", patches=self.patches))


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
        self.config = config
        self.full_attention = frozenset(config.full_attention)
        # The published Conv3d over two frames, its weight [width, 3, 2, patch, patch] flattened.
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=operations.Linear(3 * FRAMES * config.patch**2, config.width, bias=False, **factory))
        )
        self.blocks = nn.ModuleList(QwenBlock(config, operations=operations, **factory) for _ in range(config.depth))
        patches = config.merge**2
        self.merger = QwenMerger(config.width, patches, semantic_width, operations=operations, **factory)

    def forward(self, pixels):
        """Semantic features of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of a token's pixels; their dtype is the one computed in.
        Returns [B, tokens, semantic_width], tokens row by row.
        """
        config = self.config
        rows, columns = (size // config.token_pixels for size in pixels.shape[-2:])
        order, windows = window_order(rows, columns, config.window // config.token_pixels, pixels.device)
        head_width = config.width // config.heads
        angles = rotary_angles(order // columns, order % columns, head_width, config.merge).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        patches = config.merge**2
        windows = [(count, patches * tokens) for count, tokens in windows]
        whole = [(1, patches * len(order))]

        x = token_patches(normalise(pixels, self.MEAN, self.STD), config.patch, config.merge)
        x = self.patch_embed(x[:, order].flatten(1, 2))
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin, whole if index in self.full_attention else windows)
        return self.merger(x)[:, order.argsort()]


# The family


def _rotary_parts(head_width: int) -> tuple[int, int, int]:
    """16, 24, 24 of 64 as published."""
    spatial = head_width // 2 * 3 // 8
    return head_width // 2 - 2 * spatial, spatial, spatial


class Qwen2_5VL(Family):
    name = "qwen2_5_vl"
    title = "Qwen2.5-VL"

    base_types = ("qwen2_5_vl",)
    hub_names = (
        ("model.visual.", "vision_tower."),
        ("visual.", "vision_tower."),
        ("model.language_model.", "language_model."),
        ("model.", "language_model."),
    )
    published_names = (("encoder.", "vision_tower."), ("lmm.language_model.", "language_model."))

    vision_config = QwenVisionConfig
    miniature = QwenVisionConfig(width=32, depth=2, heads=2, mlp_width=48, full_attention=(1,))
    published_vision_heads = {1280: 16}
    published_heads = {896: (14, 2), 1536: (12, 2), 2048: (16, 2)}

    counts_padding = True
    caption = CaptionTemplate(
        before="<|im_start|>user\n<|vision_start|>",
        image="<|image_pad|>",
        after="<|vision_end|>Describe the image.<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
        rotary_parts=_rotary_parts,
    )
    special_tokens = (
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    )  # fmt: skip
    host_vocabulary = HOST_FOLDER

    def reads_published(self, names: Mapping, config: dict) -> bool:
        return "encoder.patch_embed.proj.weight" in names and "encoder.pos_embed.weight" not in names

    def read_vision(self, sizes: Sizes, config: dict) -> QwenVisionConfig:
        width, columns = sizes.shape("patch_embed.proj.weight", 2)
        listed = config.get("fullatt_block_indexes", QwenVisionConfig.full_attention)
        return QwenVisionConfig(
            width=width,
            depth=sizes.count("blocks."),
            heads=heads_of(config, "num_heads", width, self.published_vision_heads),
            mlp_width=sizes.shape("blocks.0.mlp.gate_proj.weight", 2)[0],
            window=config.get("window_size", QwenVisionConfig.window),
            full_attention=tuple(listed) if isinstance(listed, list) else listed,
            patch=math.isqrt(columns // (3 * FRAMES)),
            merge=merge_of(sizes, "merger.mlp.0.bias", width),
        )

    def check_vision(self, vision: QwenVisionConfig) -> None:
        check_number("vision tower window", vision.window, 2**16, least=vision.token_pixels)
        if vision.width // vision.heads % 4:
            raise ValueError(f"{vision.heads} heads for a vision tower of width {vision.width} cannot be")
        if not isinstance(vision.full_attention, tuple) or not all(type(i) is int for i in vision.full_attention):
            raise ValueError("the list of vision layers with full attention holds something else than numbers")

    def read_tensor(self, name: str, tensor: Tensor) -> Tensor:
        # A convolution whose stride is its kernel is a matrix.
        return tensor.flatten(1) if name.endswith("patch_embed.proj.weight") and tensor.ndim > 1 else tensor

    def write_tensor(self, name: str, tensor: Tensor, vision) -> Tensor:
        if name.endswith("patch_embed.proj.weight"):
            return tensor.unflatten(1, (3, FRAMES, vision.patch, vision.patch))
        return tensor

    def hub_config(self, vision: QwenVisionConfig, language: LanguageModelConfig, ids: Mapping) -> dict:
        return {
            "model_type": "qwen2_5_vl",
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            **language_table(language),
            "rope_scaling": {"type": "mrope", "mrope_section": list(_rotary_parts(language.head_width))},
            "image_token_id": ids["<|image_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|endoftext|>"],
            "vision_config": {
                "model_type": "qwen2_5_vl",
                "hidden_size": vision.width,
                "depth": vision.depth,
                "num_heads": vision.heads,
                "intermediate_size": vision.mlp_width,
                "out_hidden_size": language.width,
                "patch_size": vision.patch,
                "spatial_merge_size": vision.merge,
                "window_size": vision.window,
                "fullatt_block_indexes": list(vision.full_attention),
            },
        }

    def host_tokenizer(self, folder: Path) -> bytes:
        return build_tokenizer(folder)

    def transformers_features(self, model, pixels):
        vision, tower = self.miniature, model.model.visual
        own = self.vision_config.build(vision, 1, device="meta")
        patches = token_patches(normalise(pixels, own.MEAN, own.STD), vision.patch, vision.merge)
        grid = [[1, *(side // vision.patch for side in pixels.shape[2:])]] * len(pixels)
        features = tower(patches.flatten(0, 2), grid_thw=torch.tensor(grid)).pooler_output
        return features.unflatten(0, (len(pixels), -1))


FAMILY = Qwen2_5VL()
