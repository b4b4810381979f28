"""The vocabulary of Qwen2.5 and Qwen3, which several families share and put tokens of their own behind."""

from __future__ import annotations

from pathlib import Path

from ..files.tokenizer_files import build_tokenizer_json, read_added_tokens

HOST_FOLDER = "qwen25_tokenizer"
"""Where hosts have it among their text encoders."""

_SHARED = 22
"""Tokens that every Qwen2.5 and Qwen3 adds behind its vocabulary."""

QWEN3_TOKENS = (("<tool_response>", False), ("</tool_response>", False), ("<think>", False), ("</think>", False))
"""What Qwen3 adds to them, and whether each is special."""


def build_tokenizer(folder: Path, own: tuple[tuple[str, bool], ...] = ()) -> bytes:
    """A tokenizer.json from any folder with the vocabulary; own: the family's own tokens behind the shared ones."""
    added = read_added_tokens(folder / "tokenizer_config.json")
    first = min(added)
    added = {index: token for index, token in added.items() if index < first + _SHARED}
    return build_tokenizer_json(folder, added | dict(enumerate(own, first + _SHARED)))
