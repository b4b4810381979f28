"""VGT Region."""

import torch
from comfy_api.latest import io

from ..vgt.run.control import Region
from .types import Regions, search_aliases


class VGTRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTRegion",
            display_name="VGT Region",
            category="VGT",
            **search_aliases("regional prompt", "area", "attention couple", "mask prompt", "compose"),
            description="A prompt for a part of the picture. Chain several; later ones lie over earlier ones.",
            inputs=[
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, tooltip="What to draw there, in plain language."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="Where, at any size: it is scaled to the picture. A token belongs to the region when half "
                    "of its cell is masked.",
                ),
                io.Float.Input(
                    "strength",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the region's tokens its prompt decides; the rest is left to what lies below.",
                ),
                io.Int.Input(
                    "feather",
                    optional=True,
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Tokens over which the region fades out.",
                ),
                Regions.Input("regions", optional=True, tooltip="Regions that lie below this one."),
            ],
            outputs=[Regions.Output(display_name="regions", tooltip="For VGT AR Sampler, or another VGT Region.")],
        )

    @classmethod
    def execute(cls, prompt, mask, strength=1.0, feather=0, regions=()) -> io.NodeOutput:
        return io.NodeOutput((*regions, Region(prompt, one_mask(mask), strength, feather)))


def one_mask(mask: torch.Tensor) -> torch.Tensor:
    """MASK [B, H, W] or [H, W] → [H, W]: the first of a batch."""
    return mask if mask.ndim == 2 else mask[0]
