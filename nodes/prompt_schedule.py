"""VGT Prompt Schedule."""

from comfy_api.latest import io

from ..vgt.run.control import RAMPS, Change
from .types import Schedule, search_aliases


class VGTPromptSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTPromptSchedule",
            display_name="VGT Prompt Schedule",
            category="VGT",
            **search_aliases("prompt scheduling", "prompt editing", "cfg schedule", "timestep range"),
            description="Another prompt or another cfg from a share of the tokens on. Chain several, in their order.",
            inputs=[
                io.Float.Input(
                    "start",
                    optional=True,
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the picture's tokens that are there when the change begins to hold.",
                ),
                io.String.Input(
                    "prompt",
                    optional=True,
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw from then on. Empty: what was drawn before.",
                ),
                io.Float.Input(
                    "cfg",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="The guidance scale from then on. 0: as before.",
                ),
                io.Combo.Input(
                    "ramp",
                    optional=True,
                    options=list(RAMPS),
                    default="step",
                    tooltip="step changes at once; linear goes there evenly from the change before.",
                ),
                Schedule.Input("schedule", optional=True, tooltip="The changes that come before this one."),
            ],
            outputs=[
                Schedule.Output(display_name="schedule", tooltip="For VGT AR Sampler, or another VGT Prompt Schedule.")
            ],
        )

    @classmethod
    def execute(cls, start=0.5, prompt="", cfg=0.0, ramp="step", schedule=()) -> io.NodeOutput:
        return io.NodeOutput((*schedule, Change(start, prompt if prompt.strip() else None, cfg or None, ramp)))
