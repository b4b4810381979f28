"""VGT Train LoRA."""

from comfy_api.latest import io

from .host.loading import require_generator
from .host.lora import NONE, check_tensors, lora_names, read_file
from .host.training import TRAINED, train_lora
from .host.vae import require_vgt_vae
from .types import LoraModel, LossMap, VGTModel, advanced, search_aliases, with_defaults


class VGTTrainLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTTrainLoRA",
            display_name="VGT Train LoRA",
            category="VGT",
            is_input_list=True,
            **search_aliases("fine-tune", "finetune", "dreambooth", "teach", "training"),
            description="Teaches a VGT model a new thing or style from a few pictures with captions: low-rank adapters "
            "learn, the model itself stays as it is.",
            inputs=[
                VGTModel.Input("model", tooltip="The model to teach; its LoRAs, if it has some, count as part of it."),
                io.Vae.Input("vae", tooltip="The VAE of VGT Loader."),
                io.Image.Input("images", tooltip="The pictures, of any sizes."),
                io.String.Input("texts", force_input=True, tooltip="Their captions, in the same order."),
                io.Int.Input("steps", optional=True, default=100, min=1, max=1_000_000, tooltip="Steps to train."),
                io.Int.Input("batch_size", optional=True, default=4, min=1, max=256, tooltip="Pictures a step."),
                io.Int.Input(
                    "accumulation",
                    optional=True,
                    default=1,
                    min=1,
                    max=256,
                    **advanced(),
                    tooltip="Batches that make one step together: a larger batch in the memory of a small one.",
                ),
                io.Float.Input(
                    "learning_rate",
                    optional=True,
                    default=0.002,
                    min=0.0,
                    max=1.0,
                    step=0.000001,
                    tooltip="0.002 for VGT-Drawings; for the published models begin at 0.0003.",
                ),
                io.Int.Input(
                    "rank",
                    optional=True,
                    default=8,
                    min=1,
                    max=512,
                    tooltip="How much a layer can learn; the file grows with it.",
                ),
                io.Float.Input(
                    "alpha",
                    optional=True,
                    default=8.0,
                    min=0.001,
                    max=1024.0,
                    step=0.001,
                    **advanced(),
                    tooltip="What is learnt counts alpha / rank times.",
                ),
                io.Combo.Input(
                    "train",
                    optional=True,
                    options=list(TRAINED),
                    default="language model",
                    **advanced(),
                    tooltip="What learns. The language model for a new thing, which keeps the rest as it is; "
                    "everything for a style.",
                ),
                io.Int.Input(
                    "seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=0x7FFFFFFF,
                    control_after_generate=True,  # unsaid, newer interfaces miscount the values of a saved graph
                    tooltip="The same seed and data give the same LoRA.",
                ),
                io.Combo.Input(
                    "existing_lora",
                    optional=True,
                    options=lora_names(),
                    default=NONE,
                    tooltip="A LoRA to go on from, of the same rank; also one that Cancel left in output/loras.",
                ),
                io.String.Input(
                    "keep",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="Prompts of what the model must go on drawing as it does, one a line. It draws them before "
                    "it learns, and practises them beside the pictures.",
                ),
                io.String.Input(
                    "sample_prompt",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="What the preview shows while it learns. Empty: the first caption.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    optional=True,
                    default=True,
                    **advanced(),
                    tooltip="Computes twice what would take the most memory. Off is faster where there is room.",
                ),
                LoraModel.Input("lora", optional=True, tooltip="A LoRA to go on from, instead of existing_lora."),
            ],
            outputs=[
                VGTModel.Output(display_name="VGT_MODEL", tooltip="The model with what it has learnt."),
                LoraModel.Output(display_name="LORA_MODEL", tooltip="For Save LoRA Weights and VGT Load LoRA."),
                LossMap.Output(display_name="LOSS_MAP", tooltip="For Plot Loss Graph."),
                io.Int.Output(display_name="steps", tooltip="Steps in all, those of the existing LoRA with them."),
            ],
        )

    @classmethod
    def execute(cls, model, vae, images, texts, lora=None, **settings) -> io.NodeOutput:
        model, vae = model[0], vae[0]
        require_generator(model)
        require_vgt_vae(vae)
        settings = with_defaults(cls, {name: value[0] for name, value in settings.items()})
        name = settings.pop("existing_lora")
        existing = read_file(name) if lora is None else check_tensors(lora[0])
        name = name if lora is None else "The LoRA"
        return io.NodeOutput(*train_lora(model, vae, images, texts, existing, name, **settings))
