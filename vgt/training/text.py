"""The tokenizer of a small model of its own: byte-level BPE as Qwen's, so that any text has tokens."""

from __future__ import annotations

from collections.abc import Iterable

from ..files.qwen_tokenizer import byte_level_tokenizer

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """A tokenizer.json learnt from `texts`, with the special tokens of Qwen2.5-VL that VGT and captioning use."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = byte_level_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
