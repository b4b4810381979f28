"""VGT Load LoRA."""

from comfy_api.latest import io

from .host.loading import require_generator
from .host.lora import NONE, apply, check_tensors, lora_names, read_file
from .types import LoraModel, VGTModel, search_aliases


class VGTLoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTLoadLoRA",
            display_name="VGT Load LoRA",
            category="VGT",
            **search_aliases("lora", "loha", "lokr", "dora", "adapter", "style"),
            description="Adds a LoRA to a VGT model. Put several in a row to add several.",
            inputs=[
                VGTModel.Input("model", tooltip="The model of VGT Loader, or of another VGT Load LoRA."),
                io.Combo.Input(
                    "lora_name",
                    optional=True,
                    options=lora_names(),
                    default=NONE,
                    tooltip="A file in models/loras or output/loras. With the lora input connected it is not used.",
                ),
                io.Float.Input(
                    "strength",
                    optional=True,
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="How much of the LoRA is added; 0 is the model itself, negative takes away.",
                ),
                LoraModel.Input("lora", optional=True, tooltip="The lora of VGT Train LoRA, instead of a file."),
            ],
            outputs=[VGTModel.Output(display_name="VGT_MODEL", tooltip="The model with the LoRA.")],
        )

    @classmethod
    def execute(cls, model, lora_name=NONE, strength=1.0, lora=None) -> io.NodeOutput:
        require_generator(model)
        tensors = read_file(lora_name) if lora is None else check_tensors(lora)
        if tensors is None:
            return io.NodeOutput(model)
        return io.NodeOutput(apply(model, tensors, lora_name if lora is None else "The LoRA", strength))
