"""Lets a VLM describe pictures: the image stands at its place in a chat turn, and the caption is the answer.

It makes a small VLM out of untrained parts, and keeps and measures captioning while a model is tuned into a generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.language_model import KVCache, LanguageModel, rotary_table
from ..prompt import CaptionTemplate
from .sequence import LENGTH_STEP


class Captioner:
    """Tokenizes a chat turn that asks for a caption."""

    def __init__(self, tokenizer_json: str | bytes, template: CaptionTemplate, pad_token: str):
        from tokenizers import Tokenizer

        text = tokenizer_json if isinstance(tokenizer_json, str) else tokenizer_json.decode("utf-8")
        self.tokenizer = Tokenizer.from_str(text)
        self.template = template
        self.before = self.tokenizer.encode(template.before).ids
        self.after = self.tokenizer.encode(template.after).ids
        tokens = (template.image, pad_token, template.end)
        self.image, self.pad, self.end = map(self.tokenizer.token_to_id, tokens)

    def prefix(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Ids [n] up to the answer, and their positions [3, n] (time, row, column)."""
        height, width = grid
        ids = torch.tensor(self.before + [self.image] * (height * width) + self.after)
        first = len(self.before)
        place = torch.arange(height * width)
        image = torch.stack((torch.zeros_like(place), place // width, place % width)) + first
        after = torch.arange(len(self.after)) + first + max(height, width)
        return ids, torch.cat((torch.arange(first).expand(3, -1), image, after.expand(3, -1)), dim=1)

    def answers(self, captions: Sequence[str]) -> Tensor:
        """Ids [B, n], each caption with its end token, right-padded; n - 1 is a multiple of LENGTH_STEP."""
        rows = [[*self.tokenizer.encode(caption).ids, self.end] for caption in captions]
        longest = max(map(len, rows)) - 1
        ids = torch.full((len(rows), longest + -longest % LENGTH_STEP + 1), self.pad)
        for target, row in zip(ids, rows):
            target[: len(row)] = torch.tensor(row)
        return ids


def multimodal_rotary(model: LanguageModel, template: CaptionTemplate, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Makes the rotary embedding for positions [3, n] (time, row, column): cosines and sines [1, 1, n, head_width].

    Some of a head's frequencies turn with time, some with the row and some with the column; the family says how many.
    """
    tables = [rotary_table(model.config, axis[None]) for axis in positions]
    parts = [*template.rotary_parts(model.config.head_width)] * 2
    return tuple(torch.cat([kind[i % 3].split(parts, dim=-1)[i] for i in range(6)], dim=-1) for kind in zip(*tables))


def _embed(model: LanguageModel, ids: Tensor, features: Tensor, image: int) -> Tensor:
    """Embeds ids [B, n] → [B, n, D]; features [B, T, D] stand at the image places."""
    embeds = model.embed_tokens(ids)
    places = (ids[0] == image).nonzero().flatten()
    first, last = int(places[0]), int(places[-1]) + 1
    features = features.to(embeds.dtype)
    return torch.cat((embeds[:, :first], features, embeds[:, last:]), dim=1)


def caption_loss(
    model: LanguageModel, captioner: Captioner, features: Tensor, captions: Sequence[str], grid: tuple[int, int]
) -> Tensor:
    """Computes the cross-entropy of the captions, given features [B, T, D] of images of `grid` tokens.

    The output head is the embedding itself.
    """
    answers = captioner.answers(captions).to(features.device)
    prefix, positions = captioner.prefix(grid)
    ids = torch.cat((prefix.to(answers).expand(len(answers), -1), answers[:, :-1]), dim=1)
    running = positions.max() + 1 + torch.arange(answers.shape[1] - 1)
    positions = torch.cat((positions, running.expand(3, -1)), dim=1).to(features.device)
    embeds = _embed(model, ids, features, captioner.image)
    rotary = tuple(part.to(embeds.dtype) for part in multimodal_rotary(model, captioner.template, positions))
    # Padding comes last, so no mask is needed: nothing that counts can see it.
    hidden = model(embeds, rotary, None)[:, len(prefix) - 1 :]
    wanted = answers.masked_fill(answers == captioner.pad, -100)
    return F.cross_entropy((hidden @ model.embed_tokens.weight.T).flatten(0, 1).float(), wanted.flatten())


@torch.no_grad()
def describe(
    model: LanguageModel, captioner: Captioner, features: Tensor, grid: tuple[int, int], longest: int = 32
) -> list[str]:
    """Writes the most likely captions, word by word, of features [B, T, D]."""
    rows, device = len(features), features.device
    prefix, positions = captioner.prefix(grid)
    embeds = _embed(model, prefix.to(device).expand(rows, -1), features, captioner.image)
    cache = KVCache(model.config, rows, len(prefix) + longest, device, embeds.dtype)
    slot, at, said = 0, int(positions.max()) + 1, []
    positions = positions.to(device)
    for _ in range(longest):
        rotary = tuple(part.to(embeds.dtype) for part in multimodal_rotary(model, captioner.template, positions))
        hidden = model(embeds, rotary, cache, slot)[:, -1]
        said.append((hidden @ model.embed_tokens.weight.T).argmax(-1))
        slot += embeds.shape[1]
        embeds = model.embed_tokens(said[-1])[:, None]
        positions = torch.full((3, 1), at, device=device)
        at += 1
    rows = torch.stack(said, dim=1).tolist()
    ended = [row[: row.index(captioner.end)] if captioner.end in row else row for row in rows]
    return [captioner.tokenizer.decode(row) for row in ended]


class VisionLanguageModel(nn.Module):
    """Holds the vision tower and the language model of a VLM whose output head is tied to its embedding."""

    def __init__(self, vision_tower: nn.Module, language_model: LanguageModel):
        super().__init__()
        self.vision_tower = vision_tower
        self.language_model = language_model
