"""Low-rank adapters (LoRA, arXiv 2106.09685): what is learnt beside frozen linear layers."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = {
    "language model": ("language_model.layers.",),
    "projectors": ("image_in_projector", "image_out_projector"),
    "flow head": ("flow_head.",),
}
"""What adapters can be put on: the beginnings of the names of a generator's linear layers."""


def linear_layers(generator: nn.Module, parts=tuple(PARTS)) -> dict[str, nn.Linear]:
    """The linear layers of some of PARTS by their names in the generator. Raises ValueError for an unknown part."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"{unknown[0]!r} is no part that adapters go on; it must be one of {', '.join(PARTS)}.")
    begins = tuple(begin for part in parts for begin in PARTS[part])
    layers = {name: layer for name, layer in generator.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer for name, layer in layers.items() if name.startswith(begins)}


class Adapter(nn.Module):
    """x [..., in] → what is added to a linear layer's output, [..., out]: (alpha / rank) · up · down · x."""

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        self.alpha = alpha
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        # The scale on the narrow side: there are `rank` numbers of it instead of `out`.
        return F.linear(F.linear(x, self.down) * self.scale, self.up)


class Adapters(nn.Module):
    """Adapters for some parts of a generator, float32. They know the layers' names and sizes, not the layers.

    At first they add nothing: `up` is zero, `down` uniform as PyTorch's linear layers begin, drawn from `seed` on the
    CPU.
    """

    def __init__(self, generator: nn.Module, parts, rank: int, alpha: float, seed: int):
        super().__init__()
        layers = linear_layers(generator, parts)
        self.names = list(layers)
        self.adapters = nn.ModuleList(
            Adapter(layer.in_features, layer.out_features, rank, alpha) for layer in layers.values()
        )
        self._silent = False
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for adapter in self.adapters:
                bound = 1 / math.sqrt(adapter.down.shape[1])
                adapter.down.uniform_(-bound, bound, generator=rng)

    @contextmanager
    def on(self, generator: nn.Module):
        """Inside, the generator's layers add what their adapters say. Its weights stay as they are.

        Gradients are to be taken inside as well: checkpointing runs the layers again.
        """
        layers = dict(generator.named_modules())

        def hook(adapter):
            return lambda _, inputs, out: out if self._silent else out + adapter(inputs[0]).to(out.dtype)

        handles = [
            layers[name].register_forward_hook(hook(adapter)) for name, adapter in zip(self.names, self.adapters)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def silent(self):
        """Inside, they add nothing even where they are on."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    def tensors(self) -> dict[str, Tensor]:
        """The LoRA as it lies in a file: `generator.NAME.lora_down.weight` [rank, in], `.lora_up.weight` [out, rank]
        and `.alpha` [], float32 copies on the CPU."""
        found = {}
        for name, adapter in zip(self.names, self.adapters):
            found[f"generator.{name}.lora_down.weight"] = adapter.down.detach().cpu().clone()
            found[f"generator.{name}.lora_up.weight"] = adapter.up.detach().cpu().clone()
            found[f"generator.{name}.alpha"] = torch.tensor(float(adapter.alpha))
        return found

    def load(self, tensors) -> str | None:
        """Take over a LoRA of the form that `tensors` gives. Returns what hinders it, where it is of another."""
        for name, adapter in zip(self.names, self.adapters):
            down, up, alpha = (
                tensors.get(f"generator.{name}.{end}") for end in ("lora_down.weight", "lora_up.weight", "alpha")
            )
            if down is None or up is None or alpha is None:
                return f"it has nothing for {name}"
            if down.shape != adapter.down.shape or up.shape != adapter.up.shape:
                return f"its rank is {down.shape[0]}, not {adapter.down.shape[0]}"
            with torch.no_grad():
                adapter.down.copy_(down)
                adapter.up.copy_(up)
            adapter.alpha = float(alpha)
            adapter.scale = adapter.alpha / len(down)
        more = sum(key.endswith(".lora_down.weight") for key in tensors) - len(self.names)
        return f"it has {more} more layers" if more > 0 else None
