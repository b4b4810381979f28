"""From prompts to token ids: templates, tokenizing, padding (as in the published implementation)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptTemplate:
    """What is put around a prompt. The defaults are those of the published models."""

    turn: str = "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    prompt: str = "Generate an image: {prompt}"
    no_prompt: str = "Generate an image."
    image_start: str = "<img>"
    """The text after which the image's tokens follow."""
    pad: str = "<|endoftext|>"
    """Where the base model's tokenizer files name no token to pad with."""


@dataclass(frozen=True)
class CaptionTemplate:
    """How a vision-language model is shown an image and asked for its caption."""

    before: str
    """The text up to the image."""
    image: str
    """The token in whose places the image's features stand."""
    after: str
    """The text between the image and the answer."""
    end: str
    """The token that ends an answer."""
    rotary_parts: Callable[[int], tuple[int, int, int]]
    """Head width → how many of its frequencies turn with time, row and column."""


MAX_PROMPT_TOKENS = 4096
"""Longest text a run takes. The models were trained with at most 1024; far more would only fill the memory."""


@dataclass(frozen=True)
class TokenizedPrompts:
    """ids: int64 [rows, longest], right-padded; lengths: tokens of each row without padding."""

    ids: Tensor
    lengths: tuple[int, ...]


class PromptTokenizer:
    """A `tokenizers` tokenizer with VGT's templates.

    Args:
        tokenizer_json: the contents of a tokenizer.json.
        pad_token: the token that fills short rows. Published decoding sees it, so it matters which one it is.
        template: of the model's family.
        vocabulary: the words the model's training knew, in lower case; None: it is taken to know every word.

    Raises ValueError when the JSON is no tokenizer or lacks the pad token.
    """

    def __init__(
        self,
        tokenizer_json: bytes | str,
        pad_token: str,
        template: PromptTemplate = PromptTemplate(),
        vocabulary: Sequence[str] | None = None,
    ):
        from tokenizers import Tokenizer

        try:
            text = tokenizer_json if isinstance(tokenizer_json, str) else tokenizer_json.decode("utf-8")
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(
                f"The tokenizer cannot be read ({error}); put back the base model's tokenizer.json."
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        pad = self._tokenizer.token_to_id(pad_token)
        if pad is None:
            raise ValueError(
                f"The tokenizer has no {pad_token!r} to pad with; put back the base model's tokenizer.json."
            )
        self._pad = pad
        self._vocabulary = None if vocabulary is None else frozenset(vocabulary)
        self._template = template
        self.image_start: list[int] = self._encode(template.image_start)
        """Ids of the text after which the image follows: one special token, or several ordinary ones."""

    def _encode(self, text: str) -> list[int]:
        """Ids of a text that holds all of its special tokens itself."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def __call__(self, prompts: Sequence[str], negatives: Sequence[str | None] | None) -> TokenizedPrompts:
        """Tokenize the conditional rows, then, unless `negatives` is None, as many unconditional ones.

        Raises ValueError for a prompt longer than MAX_PROMPT_TOKENS.
        """
        own = self._template
        texts = [own.prompt.format(prompt=prompt.strip()) for prompt in prompts]
        for negative in negatives or ():
            texts.append(own.no_prompt if negative is None else own.prompt.format(prompt=negative.strip()))
        turns = [own.turn.format(text=text) for text in texts]
        rows = [encoded.ids for encoded in self._tokenizer.encode_batch(turns, add_special_tokens=False)]
        lengths = tuple(len(row) for row in rows)
        longest = max(lengths)
        if longest > MAX_PROMPT_TOKENS:
            which = "prompt" if lengths.index(longest) < len(prompts) else "negative prompt"
            raise ValueError(f"The {which} is {longest} tokens long; shorten it to at most {MAX_PROMPT_TOKENS}.")
        ids = torch.full((len(rows), longest), self._pad, dtype=torch.long)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        return TokenizedPrompts(ids, lengths)

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """From which to which character of `prompt`, a text without blanks around it, each token of its row reaches.

        What the template puts before it has negative numbers, what comes after it numbers from the prompt's length on.
        """
        own = self._template
        before = len(own.turn.partition("{text}")[0]) + len(own.prompt.partition("{prompt}")[0])
        text = own.turn.format(text=own.prompt.format(prompt=prompt))
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return [(start - before, end - before) for start, end in offsets]

    def never_seen(self, prompt: str) -> list[str]:
        """The words of a prompt that the model's training never used, each once, as the tokenizer reads them.

        Empty for a model whose file names no words.
        """
        if self._vocabulary is None:
            return []
        if self._tokenizer.normalizer is not None:
            prompt = self._tokenizer.normalizer.normalize_str(prompt)
        words = re.findall(r"\w+", prompt)
        return list(dict.fromkeys(word for word in words if word.lower() not in self._vocabulary))
