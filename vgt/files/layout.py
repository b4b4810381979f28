"""What others call their tensors, and under which names our modules hold the same: published models and base models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..config import LanguageModelConfig, ModelConfig
from ..families import family
from .sizes import LayoutError

_PARTS = (("vision_tower.", "autoencoder.vision_tower."), ("language_model.", "generator.language_model."))

_LANGUAGE_COPY = "lmm.model.language_model."
"""Some published files hold their language model a second time under this name."""

_UNUSED = re.compile(
    r"lmm\..*lm_head\.|lmm\.(model\.)?(visual|vision_model|vision_tower|multi_modal_projector|mlp1)\."
    r"|(vgt_ae\.)?(teacher|teacher_mlp1|loss|discriminator)\.|(vgt_ae\.)?vit_(mean|std)$"
    r"|image_head\.(net\.)?repa_projector\.|dinov3_extractor\.|steps$"
)
"""Tensors of training, or of parts of the base model that VGT does not use."""

_RENAMES = [
    (r"encoder\.", "autoencoder.vision_tower."),
    (r"decoder\.", "autoencoder.pixel_decoder."),
    (r"(?=down_blocks\.|down_mlp\.)", "autoencoder."),
    (r"adaptive_metaquery\.max_metaquery$", "generator.position_queries.queries"),
    (r"adaptive_metaquery\.pos_encoding\.grid_embed$", "generator.position_queries.positions"),
    (r"image_head\.net\.time_embed\.mlp\.", "generator.flow_head.time_embed."),
    (r"image_head\.net\.res_blocks\.", "generator.flow_head.blocks."),
    (r"image_head\.net\.final_layer\.linear\.", "generator.flow_head.output_proj."),
    (r"image_head\.net\.", "generator.flow_head."),
    (r"(?=image_in_projector\.|image_out_projector\.)", "generator."),
]
"""What is called alike in all families."""


class StackedRows:
    """Tensors that are rows of one matrix. They are put together when asked for, so that a file's weights and their
    copy in one piece are never in memory at once."""

    def __init__(self, parts: list[Tensor]):
        """parts: at least one, alike in every dimension but the first, of which there must be one."""
        self._parts = parts
        self.shape = torch.Size((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
        self.nbytes = sum(part.nbytes for part in parts)
        dtypes = {part.dtype for part in parts}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        whole = torch.empty(self.shape, device=device, dtype=dtype)
        for rows, part in zip(whole.split([len(part) for part in self._parts]), self._parts):
            rows.copy_(part)
        return whole

    def contiguous(self) -> Tensor:
        return self.to("cpu", self.dtype)


def published_names(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A published state dict of the family `name` under our names, matrices in the parts they were published in.

    What is unused drops out; names that nothing here knows are kept, for the loader to report.
    """
    found = family(name)
    rules = [(old, _whole_name(new)) for old, new in found.published_names]
    language = [old for old, new in rules if new.startswith("generator.") and any(n.startswith(old) for n in tensors)]
    renamed = {}
    for old, tensor in tensors.items():
        bare = old.removeprefix("vgt_ae.")
        if _UNUSED.match(old) or bare.startswith(found.unused) or (language and old.startswith(_LANGUAGE_COPY)):
            continue
        new = _by_prefix(bare, (*rules, (_LANGUAGE_COPY, _PARTS[1][1]))) or _by_pattern(bare) or old
        renamed[new] = found.read_tensor(new, tensor)
    return renamed


def base_names(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A base model's tensors under our names, matrices in the parts that its files hold; the rest drops out."""
    found = family(name)
    rules = [(old, _whole_name(new)) for old, new in found.hub_names]
    renamed = {}
    for old, tensor in found.from_hub(dict(tensors)).items():
        new = None if old.startswith(found.unused) else _by_prefix(old, rules)
        if new is not None:
            renamed[new] = found.read_tensor(new, tensor)
    return renamed


def hub_name(ours: str, name: str) -> str:
    """What the base models of the family `name` call a tensor of ours, `vision_tower.…` or `language_model.…`."""
    old, new = next(rule for rule in reversed(family(name).hub_names) if ours.startswith(rule[1]))
    return old + ours[len(new) :]


def to_our_names(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor | StackedRows]:
    """Rename a published state dict, drop what is unused, and join what our modules hold as one matrix.

    Raises LayoutError when only some of the parts of a matrix are there, they do not go together, or a tensor holds no
    floating point numbers.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not _UNUSED.match(name):
            raise LayoutError(f"the tensor {name} holds {tensor.dtype}, not floating point numbers")
    renamed: dict[str, Tensor | StackedRows] = published_names(tensors, config.family)
    if config.generator:
        stack_language(renamed, config.generator.language)
        head = "generator.flow_head."
        parts = [f"{head}blocks.{block}." for block in range(config.generator.flow_head.depth)] + [
            f"{head}final_layer."
        ]
        for kind in ("weight", "bias"):
            _stack(renamed, f"{head}modulation.{kind}", [f"{part}adaLN_modulation.1.{kind}" for part in parts])
    return renamed


def stack_language(tensors: dict[str, Tensor | StackedRows], language: LanguageModelConfig) -> None:
    """Join in place the matrices of the language model that our module holds as one."""
    for whole, parts in stacked_language(language):
        _stack(tensors, _PARTS[1][1] + whole, [_PARTS[1][1] + part for part in parts])


def stacked_language(language: LanguageModelConfig) -> Iterator[tuple[str, list[str]]]:
    """Each tensor of our language model that others hold in parts, and the names of these, in the order of its rows."""
    for layer in range(language.depth):
        at = f"layers.{layer}."
        for kind in ("weight", "bias"):
            yield f"{at}self_attn.qkv_proj.{kind}", [f"{at}self_attn.{part}_proj.{kind}" for part in "qkv"]
        yield f"{at}mlp.gate_up_proj.weight", [f"{at}mlp.{part}_proj.weight" for part in ("gate", "up")]


def _whole_name(ours: str) -> str:
    return _by_prefix(ours, _PARTS)


def _by_prefix(name: str, rules) -> str | None:
    return next((new + name[len(old) :] for old, new in rules if name.startswith(old)), None)


def _by_pattern(name: str) -> str | None:
    for pattern, replacement in _RENAMES:
        new, found = re.subn("^" + pattern, replacement, name)
        if found:
            return new
    return None


def _stack(tensors: dict[str, Tensor | StackedRows], whole: str, parts: list[str]) -> None:
    if missing := [part for part in parts if part not in tensors]:
        if len(missing) < len(parts):
            raise LayoutError(f"the tensor {missing[0]} is missing")
        return
    found = [tensors.pop(part) for part in parts]
    if any(tensor.ndim == 0 or tensor.shape[1:] != found[0].shape[1:] for tensor in found):
        shapes = " and ".join(f"{part} {list(tensor.shape)}" for part, tensor in zip(parts, found))
        raise LayoutError(f"the tensors {shapes[:300]} do not go together")
    tensors[whole] = StackedRows(found)
