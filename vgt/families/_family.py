"""What a family's file says of its vision-language models. The defaults are what most of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ..config import LanguageModelConfig
from ..files.sizes import LayoutError, Sizes, heads_of, section
from ..networks.language_model import LanguageModel
from ..prompt import CaptionTemplate, PromptTemplate


class VisionConfig(Protocol):
    """What every family's configuration of its vision tower has, a frozen dataclass of numbers and tuples of them."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: int
    """Side in pixels of a patch."""
    merge: int
    """Side in patches of a token."""

    @property
    def token_pixels(self) -> int:
        """Side in pixels of the square that one token stands for."""

    def build(self, semantic_width: int, *, operations=nn, device=None, dtype=None) -> nn.Module:
        """The tower: pixels [B, 3, H, W] in [0, 1] → features [B, tokens, semantic_width], tokens row by row."""


@dataclass(frozen=True)
class BaseParts:
    """A base model under the names of our modules, its weights in float32."""

    vision: VisionConfig
    language: LanguageModelConfig
    vision_state: dict[str, Tensor]
    language_state: dict[str, Tensor]
    pad_token: str


class Family:
    """One family of vision-language models. A file of this folder makes one, FAMILY; CONTRIBUTING.md tells how."""

    name: str
    """As model files have it under `vgt.config`: the file's name."""
    title: str
    """What people call it."""
    fallback = False
    """Serves the base models that no other family reads."""

    # Files
    base_types: tuple[str, ...] = ()
    """`model_type` of the base model's config.json, in each of its layouts."""
    hub_names: tuple[tuple[str, str], ...] = ()
    """How names begin in the base model's files, and in our modules: `vision_tower.…` and `language_model.…`. Of two
    that fit a hub name the first counts; of two that fit a name of ours the last, in writing."""
    published_names: tuple[tuple[str, str], ...] = ()
    """The same for files in VGT's published layout; what stands below `vgt_ae.` is without that."""
    unused: tuple[str, ...] = ()
    """How names begin, in the base model's files and the published layout, that VGT has no use for."""

    # Parts
    vision_config: type[VisionConfig]
    language_config: type = LanguageModelConfig
    language_model: type[nn.Module] = LanguageModel
    language_variant: Mapping[str, bool] = {}
    """What of `language_config` is the same for all models of the family, and not its default."""
    published_vision_heads: Mapping[int, int] = {}
    """Width of a published model's vision tower → heads."""
    published_heads: Mapping[int, tuple[int, int]] = {}
    """Width of a published model's language model → heads, key and value heads."""
    rotary_base = LanguageModelConfig.rope_theta
    """Where no config.json tells it."""

    # Text and positions
    template = PromptTemplate()
    caption: CaptionTemplate | None = None
    """How a model of the family is asked for a caption; None where training does not keep captioning alive."""
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    """What a tokenizer learnt for a new model of the family has, beside its words."""
    counts_padding = False
    """Published decoding counts positions from the padded text, alike for all rows; else they run on row by row."""
    host_vocabulary: str | None = None
    """The folder among a host's text encoders whose vocabulary is the family's."""

    def reads_base(self, config: dict) -> bool:
        """Whether the base model with this config.json is of the family."""
        return config.get("model_type") in self.base_types

    def reads_published(self, names: Mapping, config: dict) -> bool:
        """Whether a state dict in the published layout is of the family.

        names: its tensors' names without `vgt_ae.`; config: the base model's config.json, {} where it is absent.
        """
        raise NotImplementedError

    def read_vision(self, sizes: Sizes, config: dict) -> VisionConfig:
        """The vision tower's configuration. sizes: of the tower, under our names; config: its part of config.json."""
        raise NotImplementedError

    def check_vision(self, vision: VisionConfig) -> None:
        """Raise ValueError for what no tower can be built from, beyond what files/config_check.py checks for all."""

    def check_language(self, language: LanguageModelConfig) -> None:
        """The same for the language model."""

    def template_for(self, language: LanguageModelConfig) -> PromptTemplate:
        """What is put around a prompt for a model with this language model."""
        return self.template

    def load_base(self, folder: Path, config: dict, layers: int | None) -> BaseParts | None:
        """A base model that another library reads; None where the names above say how. Raises ValueError.

        config: its config.json; layers: how many of the language model's to keep, None for all.
        """
        return None

    def read_language(self, sizes: Sizes, config: dict) -> LanguageModelConfig:
        """The language model's configuration. sizes: of its tensors as published; config: its part of config.json."""
        vocabulary, width = sizes.shape("embed_tokens.weight", 2)
        heads = heads_of(config, "num_attention_heads", width, {w: pair[0] for w, pair in self.published_heads.items()})
        kv_heads = config.get("num_key_value_heads", heads)
        if "num_attention_heads" not in config:
            kv_heads = self.published_heads[width][1]
        rows = sizes.shape("layers.0.self_attn.q_proj.weight", 2)[0]
        if type(heads) is not int or heads < 1 or rows % heads:
            raise LayoutError(f"the {str(heads)[:40]} heads of config.json do not divide the {rows} rows of q_proj")
        rotary = section(config, "rope_parameters")  # where transformers 5 writes it
        return self.language_config(
            width=width,
            depth=sizes.count("layers."),
            heads=heads,
            kv_heads=kv_heads,
            mlp_width=sizes.shape("layers.0.mlp.gate_proj.weight", 2)[0],
            vocabulary=vocabulary,
            head_width=rows // heads,
            rope_theta=config.get("rope_theta", rotary.get("rope_theta", self.rotary_base)),
            eps=config.get("rms_norm_eps", LanguageModelConfig.eps),
            max_positions=config.get("max_position_embeddings", LanguageModelConfig.max_positions),
            **self.language_variant,
        )

    def from_hub(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The base model's tensors in the one of its layouts that `hub_names` has."""
        return tensors

    def read_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of ours, out of the one that a file of others has in its place."""
        return tensor

    def write_tensor(self, name: str, tensor: Tensor, vision: VisionConfig) -> Tensor:
        """Inverse of `read_tensor`."""
        return tensor

    def hub_config(self, vision: VisionConfig, language: LanguageModelConfig, ids: Mapping[str, int | None]) -> dict:
        """The config.json of a base model of these sizes; ids: of `special_tokens`."""
        raise NotImplementedError

    def host_tokenizer(self, folder: Path) -> bytes:
        """The tokenizer.json of the family's models, from the files of `host_vocabulary`."""
        raise NotImplementedError

    # What tests/families needs to hold the family against the `transformers` library

    miniature: VisionConfig
    """A vision tower that is made and run in no time."""

    def transformers_config(self, vision: VisionConfig, language: LanguageModelConfig, ids: Mapping) -> dict:
        """As `hub_config`, for the library's own class of the family."""
        return self.hub_config(vision, language, ids)

    def transformers_features(self, model, pixels: Tensor) -> Tensor:
        """The image features [B, tokens, D] of that class, `model`, of pixels [B, 3, H, W] in [0, 1]."""
        raise NotImplementedError


def language_table(language: LanguageModelConfig) -> dict:
    """The language model's part of a config.json, as the `transformers` library has it."""
    return {
        "hidden_size": language.width,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_width,
        "intermediate_size": language.mlp_width,
        "vocab_size": language.vocabulary,
        "rope_theta": language.rope_theta,
        "rms_norm_eps": language.eps,
        "max_position_embeddings": language.max_positions,
        "tie_word_embeddings": True,
    }
