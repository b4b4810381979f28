"""Flow Head Settings."""

from comfy_api.latest import io

from ..vgt.run.flow import SOLVERS, FlowSettings
from ..vgt.sampling import CFG_SCHEDULES, SamplingSettings
from .types import FlowHead, search_aliases


class VGTFlowHeadSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTFlowHeadSettings",
            display_name="Flow Head Settings",
            category="VGT",
            **search_aliases("flow matching", "cfg schedule", "steps", "solver", "temperature"),
            description="How each token is drawn by VGT's flow matching head. The values here are the published ones; "
            "without this node the sampler uses them as well.",
            inputs=[
                io.Int.Input(
                    "steps", default=30, min=1, max=1000, tooltip="Flow steps a token. The paper uses 30 and 100."
                ),
                io.Combo.Input(
                    "cfg_schedule",
                    options=list(CFG_SCHEDULES),
                    default="linear",
                    tooltip="linear lowers cfg towards 1 while the picture fills up, constant keeps it.",
                ),
                io.Float.Input(
                    "last_step",
                    default=0.04,
                    min=0.001,
                    max=0.999,
                    step=0.001,
                    tooltip="Length of the last flow step, which adds no noise. The paper uses 0.04.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="euler_maruyama",
                    tooltip="euler_maruyama is the published one and adds noise at each step; euler follows the flow "
                    "without added noise.",
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="Scales the noise: less than 1 gives calmer, more alike pictures.",
                ),
            ],
            outputs=[FlowHead.Output(display_name="flow_head", tooltip="For the flow_head input of VGT AR Sampler.")],
        )

    @classmethod
    def execute(cls, steps, cfg_schedule, last_step, solver, temperature) -> io.NodeOutput:
        flow = FlowSettings(steps, last_step, solver, temperature)
        return io.NodeOutput(SamplingSettings(cfg_schedule=cfg_schedule, flow=flow))
