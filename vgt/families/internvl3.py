"""InternVL3: InternViT-300M and the language model of Qwen2.5 (arXiv 2504.10479)."""

from __future__ import annotations

import math
import re
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
from ..files.sizes import Sizes, heads_of, merge_of, section
from ..networks.attention import attention
from ..networks.vision_parts import join_heads, normalise, split_heads
from ._family import Family, language_table
from ._qwen_vocabulary import HOST_FOLDER, build_tokenizer

# The vision tower


@dataclass(frozen=True)
class InternVisionConfig:
    """InternViT: class token, learned positions, full attention."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_width: int = 4096
    grid: int = 32
    """Side, in patches, of the learned position table."""
    patch: int = 14
    merge: int = 2

    @property
    def token_pixels(self) -> int:
        return self.patch * self.merge

    def build(self, semantic_width: int, **options) -> InternVisionTower:
        return InternVisionTower(self, semantic_width, **options)


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
    """InternViT, pixel shuffle and InternVL's projection `mlp1`.

    The learned position table is resized bicubically to the image's grid, which need not be square.
    """

    MEAN = (0.485, 0.456, 0.406)
    STD = (0.229, 0.224, 0.225)

    def __init__(self, config: InternVisionConfig, semantic_width, *, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        width, self.grid, self.merge = config.width, config.grid, config.merge
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width, **factory))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width, **factory))
        self.patch_embedding = operations.Conv2d(3, width, kernel_size=config.patch, stride=config.patch, **factory)
        self.layers = nn.ModuleList(InternBlock(config, operations=operations, **factory) for _ in range(config.depth))
        merged = config.merge**2 * width
        self.mlp1 = nn.Sequential(
            operations.LayerNorm(merged, **factory),
            operations.Linear(merged, semantic_width, **factory),
            nn.GELU(),
            operations.Linear(semantic_width, semantic_width, **factory),
        )

    def forward(self, pixels):
        """Semantic features of images.

        pixels: [B, 3, H, W] in [0, 1], H and W multiples of a token's pixels; their dtype is the one computed in.
        Returns [B, tokens, semantic_width], tokens row by row.
        """
        patches = self.patch_embedding(normalise(pixels, self.MEAN, self.STD))
        rows, columns = patches.shape[-2:]
        class_token = self.class_embedding.to(patches).expand(len(patches), -1, -1)
        x = torch.cat((class_token, rearrange(patches, "b d rows columns -> b (rows columns) d")), dim=1)
        x = x + self.positions(rows, columns).to(x)
        for layer in self.layers:
            x = layer(x)
        # Pixel shuffle (InternVL's "v2"): a token's channels are those of its patches, row by row.
        cells = {"rows": rows // self.merge, "m": self.merge, "n": self.merge}
        return self.mlp1(rearrange(x[:, 1:], "b (rows m columns n) d -> b (rows columns) (m n d)", **cells))

    def positions(self, rows, columns):
        """Position embeddings of the class token and a grid of rows x columns patches: [1, 1 + rows*columns, width]."""
        table = self.position_embedding.float()
        grid = rearrange(table[:, 1:], "1 (rows columns) d -> 1 d rows columns", rows=self.grid)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((table[:, :1], rearrange(grid, "1 d rows columns -> 1 (rows columns) d")), dim=1)


# The family


OWN_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""What InternVL adds behind the vocabulary of its language model, in the order of their ids."""

_TRANSFORMERS_NAMES = (
    (r"^model\.(?=vision_tower|multi_modal_projector|language_model)", ""),
    (r"^language_model\.(?!model\.|lm_head)", "language_model.model."),
    (r"^vision_tower\.embeddings\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^vision_tower\.embeddings\.position_embeddings$", "vision_model.embeddings.position_embedding"),
    (r"^vision_tower\.embeddings\.patch_embeddings\.projection\.", "vision_model.embeddings.patch_embedding."),
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_(?=\d$)", ".ls"),
    (r"^multi_modal_projector\.layer_norm\.", "mlp1.0."),
    (r"^multi_modal_projector\.linear_1\.", "mlp1.1."),
    (r"^multi_modal_projector\.linear_2\.", "mlp1.3."),
)
"""From the names that transformers' own InternVL has to those of the models' repositories."""


class InternVL3(Family):
    name = "internvl3"
    title = "InternVL3"

    base_types = ("internvl_chat", "internvl")
    language_type = "qwen2"
    """`model_type` of the language model's part of config.json: what tells the versions of InternVL apart."""
    hub_names = (
        ("vision_model.embeddings.", "vision_tower."),
        ("vision_model.encoder.layers.", "vision_tower.layers."),
        ("mlp1.", "vision_tower.mlp1."),
        ("language_model.model.", "language_model."),
    )
    published_names = (
        ("encoder.embeddings.", "vision_tower."),
        ("encoder.encoder.layers.", "vision_tower.layers."),
        ("mlp1.", "vision_tower.mlp1."),
        ("lmm.language_model.model.", "language_model."),
    )

    vision_config = InternVisionConfig
    miniature = InternVisionConfig(width=32, depth=2, heads=2, mlp_width=48, grid=4)
    published_vision_heads = {1024: 16}
    published_heads = {896: (14, 2), 1536: (12, 2), 2048: (16, 2)}

    special_tokens = (*Family.special_tokens, *OWN_TOKENS[:3])
    host_vocabulary = HOST_FOLDER
    host_tokens = tuple((token, True) for token in OWN_TOKENS)

    def reads_base(self, config: dict) -> bool:
        # Without a word about it, it is the language model that InternVL began with.
        return super().reads_base(config) and _text(config).get("model_type", "qwen2") == self.language_type

    def reads_published(self, names: Mapping, config: dict) -> bool:
        if "encoder.embeddings.patch_embedding.weight" not in names:
            return False
        languages = [name for name in names if name.startswith("lmm.") and ".self_attn." in name]
        if languages:
            found = "qwen3" if any(".q_norm." in name for name in languages) else "qwen2"
        else:
            found = _text(config).get("model_type", "qwen2")
            found = found if found == "qwen3" else "qwen2"
        return found == self.language_type

    def read_vision(self, sizes: Sizes, config: dict) -> InternVisionConfig:
        width, _, patch, _ = sizes.shape("patch_embedding.weight", 4)
        places = sizes.shape("position_embedding", 3)[1] - 1
        return InternVisionConfig(
            width=width,
            depth=sizes.count("layers."),
            heads=heads_of(config, "num_attention_heads", width, self.published_vision_heads),
            mlp_width=sizes.shape("layers.0.mlp.fc1.weight", 2)[0],
            grid=math.isqrt(max(places, 0)),
            patch=patch,
            merge=merge_of(sizes, "mlp1.0.weight", width),
        )

    def check_vision(self, vision: InternVisionConfig) -> None:
        check_number("vision tower grid", vision.grid, 1024)

    def from_hub(self, tensors: dict) -> dict:
        renamed = {}
        for name, tensor in tensors.items():
            for pattern, replacement in _TRANSFORMERS_NAMES:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
        for name in [name for name in renamed if ".attention.q_proj." in name]:
            parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
        return renamed

    def hub_config(self, vision: InternVisionConfig, language: LanguageModelConfig, ids: Mapping) -> dict:
        return {
            "model_type": "internvl_chat",
            "architectures": ["InternVLChatModel"],
            "downsample_ratio": 1 / vision.merge,
            "ps_version": "v2",
            "vision_config": {
                "model_type": "intern_vit_6b",
                "hidden_size": vision.width,
                "num_hidden_layers": vision.depth,
                "num_attention_heads": vision.heads,
                "intermediate_size": vision.mlp_width,
                "image_size": vision.grid * vision.patch,
                "patch_size": vision.patch,
            },
            "llm_config": {"model_type": self.language_type, **language_table(language)},
        }

    def host_tokenizer(self, folder: Path) -> bytes:
        return build_tokenizer(folder, self.host_tokens)

    def transformers_config(self, vision: InternVisionConfig, language: LanguageModelConfig, ids: Mapping) -> dict:
        config = self.hub_config(vision, language, ids)
        table = config["vision_config"] | {"model_type": "internvl_vision", "attention_bias": True}
        table |= {"image_size": [vision.grid * vision.patch] * 2, "patch_size": [vision.patch] * 2}
        ids = {"image_token_id": ids["<IMG_CONTEXT>"]}
        return {"model_type": "internvl", "vision_config": table, "text_config": config["llm_config"], **ids}

    def transformers_features(self, model, pixels):
        # Not by `get_image_features`, which takes every image to be square.
        grid = [side // self.miniature.patch for side in pixels.shape[2:]]
        pixels = normalise(pixels, InternVisionTower.MEAN, InternVisionTower.STD)
        features = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
        features = model.model.pixel_shuffle(features.unflatten(1, grid), scale_factor=0.5)
        return model.model.multi_modal_projector(features.flatten(1, 2))


def _text(config: dict) -> dict:
    return section(config, "llm_config", "text_config")


FAMILY = InternVL3()
