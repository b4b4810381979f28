"""The language model of any VLM that the transformers library has: its own modules over VGT's cache."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import LanguageModelConfig
from .language_model import KVCache
from .transformers_library import LibraryError, brief, build_parts, materialise


@dataclass(frozen=True)
class TransformersLanguageConfig(LanguageModelConfig):
    """Sizes that a run needs, as measured; everything else is in the library's own configuration."""

    source: str = ""
    """The whole VLM's config.json."""
    turn: str = "{text}\n"
    """A user's turn and the beginning of the answer, from the base model's chat template."""


class TransformersLanguageModel(nn.Module):
    """A language model of the library without its output head, called like `LanguageModel`."""

    def __init__(self, config: TransformersLanguageConfig, *, operations=nn, device=None, dtype=None):
        """operations: has a say in the linear layers alone. Raises LibraryError."""
        super().__init__()
        self.config = config
        self.model = build_parts(config.source, dtype)[1]
        if operations is not nn:
            use_linear(self.model, operations.Linear)
        self.embed_tokens = take_embedding(self.model)
        if torch.device(device or "cpu").type != "meta":
            materialise(self, device or "cpu")

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The library turns positions into rotations itself: int64 [rows, n] → twice int64 [rows, 1, n, 1]."""
        return (positions[:, None, :, None],) * 2

    def forward(
        self,
        embeds: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None,
        slot: int | Tensor = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """As LanguageModel.forward; rotary is what `rotary` gave."""
        rows, m, _ = embeds.shape
        if mask is None:
            first = slot if cache is not None else 0
            mask = torch.ones(m, first + m, dtype=torch.bool, device=embeds.device).tril(first)[None, None]
        # Added to scores rather than a choice of them: every implementation of attention in the library takes it.
        hidden = torch.zeros(mask.shape, dtype=embeds.dtype, device=embeds.device)
        hidden = hidden.masked_fill_(~mask, torch.finfo(embeds.dtype).min).expand(rows, -1, -1, -1)
        return ask(self.model, embeds, rotary[0][:, 0, :, 0], hidden, cache, slot)


def use_linear(model: nn.Module, linear: type[nn.Module]) -> None:
    """Put layers of a host's class, which keeps weights in other places and dtypes, where the library has nn.Linear."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                factory = {"device": layer.weight.device, "dtype": layer.weight.dtype}
                setattr(module, name, linear(layer.in_features, layer.out_features, layer.bias is not None, **factory))


def take_embedding(model: nn.Module) -> nn.Module:
    """Take the embedding out of a language model of the library, which is given embeddings and not ids."""
    embedding = model.get_input_embeddings()
    name = next(name for name, part in model.named_children() if part is embedding)
    setattr(model, name, None)
    return embedding


def language_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a language model by the names that TransformersLanguageModel has for them; its embedding goes."""
    state = {f"embed_tokens.{name}": tensor for name, tensor in take_embedding(model).state_dict().items()}
    state |= {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def ask(model: nn.Module, embeds: Tensor, positions: Tensor, hidden: Tensor, cache: KVCache | None, slot) -> Tensor:
    """Feed embeds [rows, m, D] at positions [rows, m] to a language model of the library.

    hidden: added to the scores, [rows, 1, m, slots]. Returns the hidden states after the final norm, [rows, m, D].
    """
    arguments = {}
    if cache is not None:
        arguments[_cache_argument(type(model))] = _cache_class()(cache, slot)
    return model(
        inputs_embeds=embeds,
        attention_mask=hidden,
        position_ids=positions,
        use_cache=cache is not None,
        **arguments,
    ).last_hidden_state


@functools.cache
def _cache_argument(kind: type[nn.Module]) -> str:
    """`cache` in the newest versions of the library, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"


@functools.cache
def _cache_class() -> type:
    from transformers.cache_utils import Cache

    class PlannedCache(Cache):
        """What the library takes for its cache: keys and values go to the slots of VGT's plan."""

        def __init__(self, cache: KVCache, slot: int | Tensor):
            super().__init__(layers=[])
            self.cache, self.slot = cache, slot

        def update(self, key_states, value_states, layer_idx, *_arguments, **_options):
            return self.cache.write(layer_idx, self.slot, key_states, value_states)

        def get_seq_length(self, *_arguments, **_options) -> int:
            """Of no account: positions and masks are given."""
            return self.slot if isinstance(self.slot, int) else 0

    return PlannedCache


class _Recorder:
    """In place of a cache: notes what keys and values each layer would keep."""

    def __init__(self):
        self.kept: list[tuple] = []

    def write(self, layer: int, _slot, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.kept.append((layer, tuple(k.shape), tuple(v.shape)))
        return k, v


@torch.no_grad()
def measure_language(model: nn.Module, source: str) -> TransformersLanguageConfig:
    """What a run needs to know of a language model of the library, found by feeding it two inputs.

    Raises LibraryError for one that VGT's cache cannot serve: layers without keys and values of their own (state space,
    linear attention, shared caches), layers that differ in size, or attention in chunks.
    """
    text = model.config
    table = model.get_input_embeddings().weight
    vocabulary, width = table.shape
    depth = len(next(part for part in model.modules() if isinstance(part, nn.ModuleList)))
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise LibraryError(
            f"its language model has layers of {sorted(kinds)[0]!r}, and VGT's cache is of plain attention"
        )
    recorder, embeds = _Recorder(), torch.zeros(1, 2, width, device=table.device, dtype=table.dtype)
    positions = torch.arange(2, device=table.device)[None]
    hidden = torch.tensor([[0, torch.finfo(table.dtype).min], [0, 0]]).to(embeds)[None, None]
    try:
        states = ask(model, embeds, positions, hidden, recorder, 0)
    except Exception as error:  # of whatever code the library has for it
        raise LibraryError(f"its language model cannot be run over VGT's cache ({brief(error)})") from error
    sizes = {(keys, values) for _, keys, values in recorder.kept}
    layers = [layer for layer, *_ in recorder.kept]
    if layers != list(range(depth)) or len(sizes) != 1 or states.shape != embeds.shape:
        raise LibraryError("its language model's layers do not all keep keys and values of their own, of one size")
    keys, values = sizes.pop()
    if keys != values or keys[0] != 1 or keys[2] != 2:
        raise LibraryError("its language model keeps keys and values of different sizes")
    heads = text.num_attention_heads
    return TransformersLanguageConfig(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=keys[1],
        mlp_width=getattr(text, "intermediate_size", 4 * width),
        vocabulary=vocabulary,
        head_width=keys[3],
        max_positions=_longest(text),
        source=source,
    )


def _longest(text) -> int:
    """Positions that a run may use: within them a sliding window, which VGT's masks do not have, hides nothing."""
    longest = getattr(text, "max_position_embeddings", None) or LanguageModelConfig.max_positions
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ("sliding_attention",))
    if window and slides and getattr(text, "use_sliding_window", True):
        longest = min(longest, window)
    return longest
