"""VGT-AE as a VAE of the host, and what images and latents must be for it."""

from __future__ import annotations

import contextlib
import logging

import comfy.latent_formats
import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.cli_args import args
from torch import Tensor

from ...vgt.config import LATENT_CHANNELS, AutoencoderConfig
from ...vgt.networks.autoencoder import Autoencoder, channel_norm
from ...vgt.sampling import PUBLISHED
from .patcher import Patcher, free_memory, is_paged, room_for

FITS = ("crop", "pad", "stretch", "model size")
"""What VGT Encode may do when a side is no whole number of tokens, or the picture not of the model's size."""


class VGTVAE(comfy.sd.VAE):
    """VGT-AE as a VAE of the host: encode, decode, their tiled forms and out-of-memory fallbacks are the host's own."""

    def __init__(self, autoencoder: Autoencoder, config: AutoencoderConfig, dtype: torch.dtype):
        with _quiet("No VAE weights detected"):
            super().__init__(sd={})  # sets every default this version of the host knows, and no model
        self.first_stage_model = autoencoder
        self.latent_channels = LATENT_CHANNELS
        self.token_pixels = self.downscale_ratio = self.upscale_ratio = config.token_pixels
        self.model_side = max(1, round(PUBLISHED.height / self.token_pixels)) * self.token_pixels
        """Pixels of the side of a picture that the model was made for; the Loader says so of a whole model."""
        self.process_input = lambda image: image
        self.vae_dtype = dtype
        self.working_dtypes = [dtype]
        self.device = memory.vae_device()
        self.output_device = memory.intermediate_device()
        # Bytes an image, measured (benchmarks/RELIABILITY.md). The decoder's widest maps are at 32 pixels a token; some
        # are float32 whatever the dtype.
        per_pixel = 7 * config.decoder.widths[0]
        per_patch = 32 * config.vision.width
        self.memory_used_decode = lambda shape, dtype: (
            per_pixel * (shape[-2] * shape[-1] * 32**2) * (memory.dtype_size(dtype) + 4) // 2
        )
        self.memory_used_encode = lambda shape, dtype: (
            per_patch * (shape[-2] * shape[-1] // config.vision.patch**2) * (memory.dtype_size(dtype) + 4) // 2
        )
        self.patcher = Patcher(autoencoder, load_device=self.device, offload_device=memory.vae_offload_device())

    # The host's stock VAE nodes call these four: bad input ends here in a sentence, not in the middle of the model.

    def encode(self, pixel_samples, *arguments, **options):
        return super().encode(self._checked_pixels(pixel_samples), *arguments, **options)

    def encode_tiled(self, pixel_samples, *arguments, **options):
        if self.first_stage_model.only_side:  # images are resized to it: tiles would each become a whole latent
            return self.encode(pixel_samples)
        return super().encode_tiled(self._checked_pixels(pixel_samples), *arguments, **options)

    def decode(self, samples_in, *arguments, **options):
        check_latent(samples_in)
        return super().decode(samples_in, *arguments, **options)

    def decode_tiled(self, samples, *arguments, **options):
        check_latent(samples)
        return super().decode_tiled(samples, *arguments, **options)

    def _checked_pixels(self, image: Tensor) -> Tensor:
        """image [B, H, W, C] → its first three channels. ValueError for one smaller than a token or not finite."""
        height, width = image.shape[1:3]
        side = self.token_pixels
        if min(height, width) < side:
            raise ValueError(
                f"The image is {width}x{height}; a latent of this model needs at least {side}x{side} pixels, so scale "
                "it up, or use pad or stretch of VGT Encode."
            )
        if not torch.isfinite(image).all():
            raise ValueError("The image holds NaN or infinite values; make it again.")
        return image[..., :3]

    def make_ready(self, shape: tuple[int, ...], needed: int, sampler: comfy.model_patcher.ModelPatcher) -> bool:
        """Load for previews of that shape beside a run of the sampler that needs so many bytes.

        False: there is no room for both.
        """
        needed += self.memory_used_decode(shape, self.vae_dtype)
        if is_paged(self.patcher):  # pages count as free: the weights of both must fit, or they displace one another
            missing = self.patcher.model_size() + sampler.model_size()
        else:
            missing = self.patcher.model_size() - self.patcher.loaded_size()
        if self.device.type != "cpu" and free_memory(self.patcher) < 1.1 * missing + room_for(needed):
            logging.info("VGT: previews go without the VAE, for which there is no room beside the model.")
            return False
        memory.load_models_gpu([self.patcher], memory_required=needed)
        return True

    def encode_tiled_(self, pixel_samples, tile_x=448, tile_y=448, overlap=56):
        # the host halves and doubles the tile; all of it must stay whole tokens
        side = self.token_pixels
        tile_x, tile_y = (max(1, tile // (2 * side)) * 2 * side for tile in (tile_x, tile_y))
        overlap = max(1, overlap // side) * side
        overlap = min(overlap, min(tile_x, tile_y) // 2 - side)
        latent = super().encode_tiled_(pixel_samples, tile_x, tile_y, overlap)
        return channel_norm(latent, 1)  # where tiles overlap the host has averaged them

    def decode_tiled_(self, samples, tile_x=16, tile_y=16, overlap=4):
        return super().decode_tiled_(samples, tile_x, tile_y, overlap)


@contextlib.contextmanager
def _quiet(message: str):
    """Keep one expected message out of the log."""
    root = logging.getLogger()

    def other(record):
        return message not in record.getMessage()

    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)


def vae_dtype(chosen: torch.dtype | None, compute: torch.dtype) -> torch.dtype:
    """The dtype of the VAE: the host's own rule (--fp32-vae …), unless a dtype was chosen and no flag says another."""
    forced = args.fp16_vae or args.bf16_vae or args.fp32_vae
    return compute if chosen and not forced else memory.vae_dtype(memory.vae_device(), [torch.bfloat16])


def require_vgt_vae(vae) -> None:
    if not isinstance(vae, VGTVAE):
        raise ValueError("The VAE is not VGT's; connect the VAE of VGT Loader.")


def check_latent(samples: Tensor) -> None:
    """Raises ValueError, one sentence, unless samples are [B, 32, h, w] and finite."""
    if samples.ndim != 4 or samples.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"The latent is {list(samples.shape)}, so it is another model's (VGT's are [batch, {LATENT_CHANNELS}, "
            "height, width]); make one with VGT AR Sampler or VGT Encode."
        )
    if not torch.isfinite(samples).all():
        raise ValueError("The latent holds NaN or infinite values; make it again.")


RATIO = "downscale_ratio_spacial"
"""Entry of a LATENT: pixels of a side for one of the latent."""


def say_ratio(latent: dict, token_pixels: int) -> dict:
    """A LATENT, with what a token is in pixels where this version of the host reads that."""
    if hasattr(comfy.latent_formats.LatentFormat, "spacial_downscale_ratio"):
        latent[RATIO] = token_pixels
    return latent


def fit_to_tokens(image: Tensor, fit: str, token_pixels: int, model_side: int) -> Tensor:
    """image [B, H, W, C] → the same with H and W multiples of `token_pixels`, at least one each.

    model_side: pixels of the longer side with "model size".
    """
    height, width = image.shape[1:3]
    if fit == "model size":
        scale = model_side / max(height, width)
        size = [nearest_multiple(side * scale, token_pixels) for side in (width, height)]
        return comfy.utils.common_upscale(image.movedim(-1, 1), *size, "lanczos", "center").movedim(1, -1)
    if fit == "crop":
        return image  # the VAE itself crops, around the centre
    if fit == "pad":
        bottom, right = -height % token_pixels, -width % token_pixels
        return F.pad(image.movedim(-1, 1), (0, right, 0, bottom), mode="replicate").movedim(1, -1)
    if fit != "stretch":
        raise ValueError(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.")
    size = [nearest_multiple(side, token_pixels) for side in (width, height)]
    return comfy.utils.common_upscale(image.movedim(-1, 1), *size, "bicubic", "disabled").movedim(1, -1).clamp(0, 1)


def nearest_multiple(side: float, token_pixels: int) -> int:
    """The multiple of `token_pixels` nearest to a side in pixels, at least one."""
    return max(1, round(side / token_pixels)) * token_pixels
