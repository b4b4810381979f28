"""VGT Decode."""

from comfy_api.latest import io

from .host.vae import require_vgt_vae
from .types import search_aliases


class VGTDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTDecode",
            display_name="VGT Decode",
            category="VGT",
            **search_aliases("detokenize", "latent to image", "vae decode"),
            description="Turns VGT latents back into images.",
            inputs=[
                io.Latent.Input("samples", tooltip="A VGT latent, from VGT AR Sampler or VGT Encode."),
                io.Vae.Input("vae", tooltip="The VAE of VGT Loader."),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="The images; the published models give 28x28 pixels for every token, others what they have."
                )
            ],
        )

    @classmethod
    def execute(cls, samples, vae) -> io.NodeOutput:
        require_vgt_vae(vae)
        return io.NodeOutput(vae.decode(samples["samples"]))
