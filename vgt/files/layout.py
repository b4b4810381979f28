"""The published layout: what its tensors are called, and under which names our modules hold them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..config import INTERNVL3, QWEN2_5_VL, ModelConfig

_LANGUAGE = {INTERNVL3: "lmm.language_model.model.", QWEN2_5_VL: "lmm.language_model."}
_LANGUAGE_COPY = "lmm.model.language_model."
"""Qwen2.5-VL's language model appears a second time under this name."""

_UNUSED = re.compile(
    r"lmm\..*lm_head\.|lmm\.(model\.)?(visual|vision_model|mlp1)\.|(vgt_ae\.)?(teacher|teacher_mlp1|loss|discriminator)\."
    r"|(vgt_ae\.)?vit_(mean|std)$|image_head\.(net\.)?repa_projector\.|dinov3_extractor\.|steps$"
)
"""Tensors of training, or of parts of the base model that VGT does not use."""

_RENAMES = [
    (r"encoder\.embeddings\.", "autoencoder.vision_tower."),
    (r"encoder\.encoder\.layers\.", "autoencoder.vision_tower.layers."),
    (r"encoder\.", "autoencoder.vision_tower."),
    (r"mlp1\.", "autoencoder.vision_tower.mlp1."),
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


class LayoutError(ValueError):
    """The tensors are not those of a VGT model, or lack what is needed to tell which."""


class Joined:
    """Tensors that are rows of one matrix. They are put together when asked for, so that a file's weights and their
    joined copy are never in memory at once."""

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


def to_our_names(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor | Joined]:
    """Rename a published state dict, drop what is unused, and join what our modules hold as one matrix.

    Names that nothing here knows are kept, for the loader to report. Raises LayoutError when only some of the parts of
    a matrix are there, they do not go together, or a tensor holds no floating point numbers.
    """
    language = language_prefix(tensors, config.family)
    renamed = {}
    for name, tensor in tensors.items():
        if _UNUSED.match(name) or (name.startswith(_LANGUAGE_COPY) and language != _LANGUAGE_COPY):
            continue
        if not tensor.is_floating_point():
            raise LayoutError(f"the tensor {name} holds {tensor.dtype}, not floating point numbers")
        if name.startswith(language):
            renamed["generator.language_model." + name[len(language) :]] = tensor
        else:
            renamed[_rename(name)] = tensor
    patches = "autoencoder.vision_tower.patch_embed.proj.weight"
    if patches in renamed and renamed[patches].ndim > 1:
        renamed[patches] = renamed[patches].flatten(1)  # a convolution whose stride is its kernel is a matrix
    if config.generator:
        for layer in range(config.generator.language.depth):
            prefix = f"generator.language_model.layers.{layer}."
            for kind in ("weight", "bias"):
                _join(
                    renamed,
                    prefix + "self_attn.qkv_proj." + kind,
                    [f"{prefix}self_attn.{p}_proj.{kind}" for p in "qkv"],
                )
            _join(renamed, prefix + "mlp.gate_up_proj.weight", [f"{prefix}mlp.{p}_proj.weight" for p in ("gate", "up")])
        head = "generator.flow_head."
        parts = [f"{head}blocks.{block}." for block in range(config.generator.flow_head.depth)] + [
            f"{head}final_layer."
        ]
        for kind in ("weight", "bias"):
            _join(renamed, f"{head}modulation.{kind}", [f"{part}adaLN_modulation.1.{kind}" for part in parts])
    return renamed


def _rename(name: str) -> str:
    bare = name.removeprefix("vgt_ae.")
    for pattern, replacement in _RENAMES:
        new, found = re.subn("^" + pattern, replacement, bare)
        if found:
            return new
    return name


def _join(tensors: dict[str, Tensor | Joined], whole: str, parts: list[str]) -> None:
    if missing := [part for part in parts if part not in tensors]:
        if len(missing) < len(parts):
            raise LayoutError(f"the tensor {missing[0]} is missing")
        return
    found = [tensors.pop(part) for part in parts]
    if any(tensor.ndim == 0 or tensor.shape[1:] != found[0].shape[1:] for tensor in found):
        shapes = " and ".join(f"{part} {list(tensor.shape)}" for part, tensor in zip(parts, found))
        raise LayoutError(f"the tensors {shapes[:300]} do not go together")
    tensors[whole] = Joined(found)


def language_prefix(tensors: dict[str, Tensor], family: str) -> str:
    prefix = _LANGUAGE[family]
    return prefix if any(name.startswith(prefix) for name in tensors) else _LANGUAGE_COPY
