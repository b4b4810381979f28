"""The host's layers, as our modules are built from them."""

from __future__ import annotations

import comfy.ops
import torch

from ...vgt.networks import linear


class _OwnStateDict:
    """Newer hosts with dynamic VRAM make Linear and Embedding without their weights until a state dict brings them,
    unless the class loads state dicts itself. Ours are compared with the file first, so they are made whole.
    """

    def _load_from_state_dict(self, *arguments):
        torch.nn.Module._load_from_state_dict(self, *arguments)


class Operations(comfy.ops.disable_weight_init):
    """The host's layers."""

    class Linear(_OwnStateDict, comfy.ops.disable_weight_init.Linear, linear.Linear):
        pass

    class Embedding(_OwnStateDict, comfy.ops.disable_weight_init.Embedding):
        pass


class Float8Operations(comfy.ops.manual_cast):
    """Linear weights kept in float8; everything small stays as it is."""

    class Embedding(_OwnStateDict, comfy.ops.manual_cast.Embedding):
        pass

    class Linear(_OwnStateDict, comfy.ops.manual_cast.Linear):
        def __init__(self, *arguments, **factory):
            super().__init__(*arguments, **factory)
            self.weight = torch.nn.Parameter(self.weight.to(torch.float8_e4m3fn), requires_grad=False)
