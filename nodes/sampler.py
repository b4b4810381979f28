"""VGT AR Sampler."""

from comfy_api.latest import io

from ..vgt.run.order import ORDERS
from ..vgt.run.plan import DECODINGS, GROUPINGS
from . import sampling
from .host.loading import require_generator
from .host.notes import Notes
from .types import FlowHead, Regions, Schedule, VGTModel, advanced, search_aliases, with_defaults


class VGTARSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        side = {"default": 0, "optional": True, "min": 0, "max": 16384, "step": 4}
        side["tooltip"] = "Pixels, rounded to whole tokens. 0: the size the model was made for."
        return io.Schema(
            node_id="VGTARSampler",
            display_name="VGT AR Sampler",
            category="VGT",
            **search_aliases(
                "text to image", "txt2img", "draw", "autoregressive", "generate", "inpaint", "outpaint", "variations"
            ),
            description="Draws images token by token from a prompt. With a latent it repaints: where its noise mask "
            "is set, or the share of tokens that denoise says.",
            inputs=[
                VGTModel.Input("model", tooltip="The generator of VGT Loader."),
                io.String.Input(
                    "prompt", multiline=True, dynamic_prompts=True, tooltip="What to draw, in plain language."
                ),
                io.String.Input(
                    "negative_prompt",
                    optional=True,
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to stay away from. Empty: the unconditional prompt the model was trained with.",
                ),
                io.Int.Input(
                    "seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same noise and the same order, on every device.",
                ),
                io.Int.Input("width", **side),
                io.Int.Input("height", **side),
                io.Int.Input("batch_size", optional=True, default=1, min=1, max=64, tooltip="Images to draw at once."),
                io.Float.Input(
                    "cfg",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Classifier-free guidance scale. 0: the model's own. At 1 the negative prompt is not used, "
                    "and a step costs half.",
                ),
                io.Int.Input(
                    "tokens_per_step",
                    optional=True,
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Tokens drawn at once (the paper's acceleration ratio): 4 or 16 are much faster, at some "
                    "loss of quality. 0: the model's own.",
                ),
                io.Combo.Input(
                    "order",
                    optional=True,
                    options=list(ORDERS),
                    default="random",
                    tooltip="The order in which tokens are drawn: random as in training, sequential row by row, centre "
                    "and spiral from the middle, checkerboard every second one first.",
                ),
                io.Combo.Input(
                    "decoding",
                    optional=True,
                    options=list(DECODINGS),
                    default="published",
                    **advanced(),
                    tooltip="published repeats the authors' sampling loop; training-consistent feeds the model exactly "
                    "what it saw in training, which can differ when several tokens are drawn at once.",
                ),
                io.Combo.Input(
                    "grouping",
                    optional=True,
                    options=list(GROUPINGS),
                    default="uniform",
                    **advanced(),
                    tooltip="How tokens are shared out over the steps: uniform as published, cosine from few to many.",
                ),
                io.Float.Input(
                    "denoise",
                    optional=True,
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="With a latent: the share of its tokens to draw anew. Lower keeps more of it.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="A VGT latent to repaint (where its noise mask is set), or an empty latent that gives size "
                    "and batch. Then width, height and batch_size are not used.",
                ),
                FlowHead.Input(
                    "flow_head", optional=True, tooltip="From Flow Head Settings. Unconnected: the model's own."
                ),
                io.Float.Input(
                    "stop_at",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    **advanced(),
                    tooltip="The share of the tokens at which to stop. The latent's mask is then what is left, and "
                    "another sampler with the same values goes on as if there had been no stop.",
                ),
                Regions.Input(
                    "regions", optional=True, tooltip="From VGT Region: prompts of their own for parts of the picture."
                ),
                Schedule.Input(
                    "schedule",
                    optional=True,
                    tooltip="From VGT Prompt Schedule: other prompts or cfg later on.",
                ),
                io.MultiType.Input(
                    "order_map",
                    types=[io.Mask, io.Image],
                    optional=True,
                    tooltip="A mask or picture: what is bright is drawn first. Equal tokens come in the order above.",
                ),
                io.Boolean.Input(
                    "previews",
                    default=True,
                    optional=True,
                    **advanced(),
                    tooltip="Show the picture so far while it is drawn. It takes less than 4 % of the time.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="A VGT latent, for VGT Decode or any latent node."),
                io.Image.Output(
                    display_name="plan",
                    tooltip="How the run went: a token's number and brightness say when it came, its colour from which "
                    "prompt, the red bar how open it still was.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, **inputs) -> io.NodeOutput:
        notes = Notes(cls.hidden.unique_id if cls.hidden else None)
        inputs = with_defaults(cls, inputs)
        return io.NodeOutput(*sampling.sample(require_generator(model), notes=notes, **inputs))
