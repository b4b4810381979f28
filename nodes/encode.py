"""VGT Encode."""

from comfy_api.latest import io

from .host.vae import FITS, fit_to_tokens, require_vgt_vae, say_ratio
from .types import search_aliases


class VGTEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VGTEncode",
            display_name="VGT Encode",
            category="VGT",
            **search_aliases("tokenizer", "image to latent", "vae encode"),
            description="Turns images into VGT latents: 32 channels for every token, a square of 28x28 pixels in the "
            "published models.",
            inputs=[
                io.Image.Input("image", tooltip="The images to encode."),
                io.Vae.Input("vae", tooltip="The VAE of VGT Loader."),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="crop",
                    optional=True,
                    tooltip="What to do when a side is no whole number of tokens: crop cuts the edges, pad repeats "
                    "the last pixels, stretch resizes to the nearest. model size scales the picture to what the model "
                    "draws.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The latent, [B, 32, h, w]: one vector a token.")],
        )

    @classmethod
    def execute(cls, image, vae, fit="crop") -> io.NodeOutput:
        require_vgt_vae(vae)
        samples = vae.encode(fit_to_tokens(image, fit, vae.token_pixels, vae.model_side))
        return io.NodeOutput(say_ratio({"samples": samples}, vae.token_pixels))
