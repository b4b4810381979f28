"""InternVL3.5 (arXiv 2508.18265): InternVL3 with the language model of Qwen3."""

from __future__ import annotations

from ._qwen_vocabulary import QWEN3_TOKENS
from .internvl3 import InternVL3


class InternVL3_5(InternVL3):
    name = "internvl3_5"
    title = "InternVL3.5"

    language_type = "qwen3"
    language_variant = {"qkv_bias": False, "qk_norm": True}
    published_heads = {1024: (16, 8), 2048: (16, 8), 2560: (32, 8), 4096: (32, 8)}

    host_tokens = QWEN3_TOKENS + InternVL3.host_tokens


FAMILY = InternVL3_5()
