"""VGT Loader."""

from comfy_api.latest import io

from .host.loading import DTYPES, load_model, model_names
from .types import VGTModel, advanced, search_aliases


class VGTLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTLoader",
            display_name="VGT Loader",
            category="VGT",
            **search_aliases("load model", "checkpoint", "text to image model", "tokenizer"),
            description="Loads a VGT model: the generator for VGT AR Sampler and the tokenizer (VGT-AE) as a VAE.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_names(),
                    tooltip="A file in models/vgt, or a published model by name, which is downloaded and converted "
                    "when it is first used: InternVL3-1.6B 4.4 GB, Qwen2.5-VL-2B 6.4 GB, VGT-AE (tokenizers alone) "
                    "0.9 and 1.7 GB.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    optional=True,
                    tooltip="The precision to compute in. auto: bf16 on a GPU that has it, else fp32. fp8_e4m3fn keeps "
                    "the weights in half the memory of bf16 and computes in bf16, at some loss.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    tooltip="Compiles flow head and language model with torch.compile when a picture is first drawn, "
                    "which takes up to a minute, for fewer launches after it. Needs Triton on a GPU, a C++ compiler on "
                    "a CPU.",
                    **advanced(),
                ),
            ],
            outputs=[
                VGTModel.Output(display_name="VGT_MODEL", tooltip="The generator, for VGT AR Sampler."),
                io.Vae.Output(
                    display_name="VAE", tooltip="The tokenizer, for VGT Encode, VGT Decode and stock VAE nodes."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model) -> bool:
        """Take every name: a model of an earlier version has a successor, and of others loading says what to do."""
        return True

    @classmethod
    def execute(cls, model, dtype="auto", compile=False) -> io.NodeOutput:
        vgt_model, vae = load_model(model, dtype)
        vgt_model.compile = compile
        return io.NodeOutput(vgt_model, vae)
