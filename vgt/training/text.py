"""The tokenizer of a small model of its own: byte-level BPE, so that any text has tokens, in lower case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files.tokenizer_files import byte_level_tokenizer

_WORDS = "words.txt"


def prompt_normaliser(wordings: Iterable[tuple[str, str]] = ()):
    """What a `tokenizers.Tokenizer` does to a text first: lower case, then each (regular expression, replacement)."""
    from tokenizers import Regex, normalizers

    replaced = [normalizers.Replace(Regex(pattern), text) for pattern, text in wordings]
    return normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), *replaced])


def save_words(base: Path, captions: Iterable[str]) -> None:
    """Note in a base model's folder the words it was trained on from the start, lower case, one a line."""
    (base / _WORDS).write_text("".join(word + "\n" for word in sorted(_words(captions))), encoding="utf-8")


def seen_words(base: Path, captions: Iterable[str] | None) -> tuple[str, ...] | None:
    """The words that a base model and further captions together hold, sorted.

    None where nobody can list them: the base model came from elsewhere, or `captions` is None.
    """
    file = base / _WORDS
    if captions is None or not file.is_file():
        return None
    return tuple(sorted({*file.read_text(encoding="utf-8").split(), *_words(captions)}))


def _words(captions: Iterable[str]) -> set[str]:
    return {word for caption in captions for word in re.findall(r"\w+", caption.lower())}


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, special_tokens: Sequence[str], wordings: Iterable[tuple[str, str]] = ()
) -> str:
    """A tokenizer.json learnt from `texts`; the special tokens come first.

    It reads lower case, and `wordings` as in `prompt_normaliser`.
    """
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = byte_level_tokenizer(models.BPE())
    tokenizer.normalizer = prompt_normaliser(wordings)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
