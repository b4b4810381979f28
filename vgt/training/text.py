"""The tokenizer of a small model of its own: byte-level BPE, so that any text has tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..files.tokenizer_files import byte_level_tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int, special_tokens: Sequence[str]) -> str:
    """A tokenizer.json learnt from `texts`; the special tokens come first."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = byte_level_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
