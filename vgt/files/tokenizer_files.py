"""A byte-level tokenizer from its vocabulary files, for base models that come without a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

# How text is cut into words before merging (the pre_tokenizer of Qwen2.5's tokenizer.json; Qwen3's is the same).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_added_tokens(tokenizer_config: Path) -> dict[int, tuple[str, bool]]:
    """Id → (token, whether it is special) as a tokenizer_config.json lists them; empty when the file is absent."""
    if not tokenizer_config.is_file():
        return {}
    listed = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("added_tokens_decoder", {})
    return {int(index): (token["content"], bool(token.get("special"))) for index, token in listed.items()}


def byte_level_tokenizer(model):
    """A `tokenizers.Tokenizer` around a BPE model, cutting and normalising text as Qwen2.5's does."""
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_tokenizer_json(folder: Path, added: Mapping[int, tuple[str, bool]]) -> bytes:
    """A tokenizer.json from the vocab.json and merges.txt in `folder` and the added tokens.

    Raises ValueError when an added token would not get the id it is listed under.
    """
    from tokenizers import AddedToken
    from tokenizers.models import BPE

    tokenizer = byte_level_tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    for index, (content, special) in sorted(added.items()):
        tokenizer.add_tokens([AddedToken(content, special=special, normalized=False)])
        if tokenizer.token_to_id(content) != index:
            raise ValueError(f"The vocabulary in {folder} does not fit: {content} should be token {index}.")
    return tokenizer.to_str().encode()
