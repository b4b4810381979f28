"""Flow Head Settings."""

from comfy_api.latest import io

from ..vgt.run.flow import SOLVERS, FlowSettings
from ..vgt.sampling import CFG_SCHEDULES, PRESETS, SamplingSettings
from .types import FlowHead, advanced, search_aliases

CUSTOM = "custom"
"""The preset that is none: the typed values hold."""


class VGTFlowHeadSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTFlowHeadSettings",
            display_name="Flow Head Settings",
            category="VGT",
            **search_aliases(
                "flow matching", "cfg schedule", "steps", "solver", "temperature", "preset", "fast", "speed"
            ),
            description="How each token is drawn by VGT's flow matching head. The values here are the published ones; "
            "without this node the sampler uses the model's own.",
            inputs=[
                io.Int.Input(
                    "steps",
                    optional=True,
                    default=30,
                    min=1,
                    max=1000,
                    tooltip="Flow steps a token. The paper uses 30 and 100.",
                ),
                io.Combo.Input(
                    "cfg_schedule",
                    optional=True,
                    options=list(CFG_SCHEDULES),
                    default="linear",
                    tooltip="linear lowers cfg towards 1 while the picture fills up, constant keeps it.",
                ),
                io.Float.Input(
                    "last_step",
                    optional=True,
                    default=0.04,
                    min=0.001,
                    max=0.999,
                    step=0.001,
                    **advanced(),
                    tooltip="Length of the last flow step, which adds no noise. The paper uses 0.04.",
                ),
                io.Combo.Input(
                    "solver",
                    optional=True,
                    options=list(SOLVERS),
                    default="euler_maruyama",
                    tooltip="euler_maruyama is the published one and adds noise at each step; exact does so too and "
                    "needs fewer steps; euler follows the flow without added noise; distilled jumps, in a model that "
                    "has a head for it.",
                ),
                io.Float.Input(
                    "temperature",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    **advanced(),
                    tooltip="Scales the noise: less than 1 gives calmer, more alike pictures.",
                ),
                io.Float.Input(
                    "shift",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    optional=True,
                    **advanced(),
                    tooltip="Where the flow steps lie: 1 evenly, more than 1 closer together near the noise.",
                ),
                io.Int.Input(
                    "final_steps",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    **advanced(),
                    tooltip="What steps falls to while the picture fills up: late tokens need fewer. 0: it stays.",
                ),
                io.Float.Input(
                    "cfg_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    **advanced(),
                    tooltip="The share of the picture from which cfg is 1 and a step costs half. 1: to the end.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[CUSTOM, *PRESETS],
                    default=CUSTOM,
                    optional=True,
                    tooltip="custom: the values above. published, balanced and fast have values of their own, from "
                    "the most steps to the fewest.",
                ),
            ],
            outputs=[FlowHead.Output(display_name="flow_head", tooltip="For the flow_head input of VGT AR Sampler.")],
        )

    @classmethod
    def execute(
        cls,
        steps=30,
        cfg_schedule="linear",
        last_step=0.04,
        solver="euler_maruyama",
        temperature=1.0,
        shift=1.0,
        final_steps=0,
        cfg_end=1.0,
        preset=CUSTOM,
    ) -> io.NodeOutput:
        if preset in PRESETS:
            return io.NodeOutput(PRESETS[preset])
        if preset != CUSTOM:  # which the API can send
            raise ValueError(f"preset is {preset!r}; it must be one of {', '.join((CUSTOM, *PRESETS))}.")
        flow = FlowSettings(steps, last_step, solver, temperature, final_steps or None, shift)
        return io.NodeOutput(SamplingSettings(cfg_schedule=cfg_schedule, cfg_end=cfg_end, flow=flow))
