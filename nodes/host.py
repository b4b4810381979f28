"""Everything that touches comfy.*: model folders, memory management, VAE, progress, preview, interrupt."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import comfy
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

from ..vgt import generation, hub
from ..vgt.autoencoder import Autoencoder
from ..vgt.checkpoint import convert, read_checkpoint
from ..vgt.config import INTERNVL3, LATENT_CHANNELS, TOKEN_PIXELS, AutoencoderConfig
from ..vgt.model import build_autoencoder, build_generator, build_tokenizer
from ..vgt.plan import group_sizes
from ..vgt.prompt import PromptTokenizer
from ..vgt.qwen_tokenizer import build_family_tokenizer

FOLDER = "vgt"
"""Name of the models folder, also in extra_model_paths.yaml."""

DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}

FITS = ("crop", "pad", "stretch")
"""What VGT Encode may do when a side is not a multiple of 28."""

_BUNDLED = Path(__file__).parent.parent / "models"

# Newer hosts name the patcher class to use; see "dynamic VRAM" in theirs.
_Patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


# --- models ------------------------------------------------------------------------------------------------------


@dataclass
class VGTModel:
    """What VGT Loader hands to VGT AR Sampler: the generator under the host's memory management."""

    name: str
    patcher: comfy.model_patcher.ModelPatcher | None
    """None for a tokenizer-only model."""
    tokenizer: PromptTokenizer | None
    vae: VGTVAE


def register_model_folder() -> None:
    """Make models/vgt, and the models that come with this pack, known to the host."""
    for path in (str(_BUNDLED), str(Path(folder_paths.models_dir) / FOLDER)):
        folder_paths.add_model_folder_path(FOLDER, path)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors", ".pth"})


def model_names() -> list[str]:
    """Names for the Loader's list: what comes with the pack, what the user has, what can be downloaded."""
    names = [name for name in folder_paths.get_filename_list(FOLDER) if not name.startswith(hub.WORK)]
    return sorted(names, key=lambda name: (not (_BUNDLED / name).is_file(), name)) + list(hub.PUBLISHED)


def load_model(name: str, dtype: str) -> tuple[VGTModel, VGTVAE]:
    """Load a model by its name in the list, downloading a published one that is absent.

    Raises CheckpointError, FileNotFoundError, HubError, and ValueError for a dtype that is none of DTYPES.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    path = _download(name) if name in hub.PUBLISHED else folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise FileNotFoundError(f"There is no model {name} in models/{FOLDER}; put it there or choose another.")
    checkpoint = read_checkpoint(path, _host_tokenizer)
    device = memory.get_torch_device()
    compute = DTYPES[dtype]
    operations = comfy.ops.disable_weight_init
    if compute is None:
        compute = torch.bfloat16 if memory.should_use_bf16(device) else torch.float32
    elif compute == torch.float8_e4m3fn:
        compute = torch.bfloat16
        operations = _Float8Operations
    autoencoder = build_autoencoder(checkpoint, dtype=compute, operations=comfy.ops.disable_weight_init)
    vae = VGTVAE(autoencoder, checkpoint.config.autoencoder, compute)
    patcher = tokenizer = None
    if checkpoint.config.generator:
        tokenizer = build_tokenizer(checkpoint)
        generator = build_generator(checkpoint, dtype=compute, operations=operations)
        patcher = _Patcher(generator, load_device=device, offload_device=memory.unet_offload_device())
    return VGTModel(name, patcher, tokenizer, vae), vae


def _download(name: str) -> Path:
    """The converted file of a published model in models/vgt; the node's bar shows the download, Cancel ends it."""
    bar = comfy.utils.ProgressBar(1)
    return hub.obtain(
        name,
        Path(folder_paths.models_dir) / FOLDER,
        lambda source, target: convert(source, target, _host_tokenizer),
        lambda done, total, _what: bar.update_absolute(done, total),
        memory.throw_exception_if_processing_interrupted,
    )


def _host_tokenizer(family: str) -> bytes | None:
    """The tokenizer made from the Qwen2.5 vocabulary that the host carries for its text encoders."""
    folder = Path(comfy.__path__[0]) / "text_encoders" / "qwen25_tokenizer"
    if not (folder / "vocab.json").is_file():
        return None
    return build_family_tokenizer(folder, internvl3=family == INTERNVL3)


class _Float8Operations(comfy.ops.manual_cast):
    """Linear weights kept in float8; everything small stays as it is."""

    class Linear(comfy.ops.manual_cast.Linear):
        def __init__(self, *arguments, **factory):
            super().__init__(*arguments, **factory)
            self.weight = torch.nn.Parameter(self.weight.to(torch.float8_e4m3fn), requires_grad=False)


def require_generator(model: VGTModel) -> VGTModel:
    if not isinstance(model, VGTModel):  # a value that the interface cannot send, but the API can
        raise ValueError("The model is not VGT's; connect the VGT_MODEL of VGT Loader.")
    if model.patcher is None:
        raise ValueError(f"{model.name} is a tokenizer only and cannot draw; load a full VGT model.")
    return model


# --- VAE ---------------------------------------------------------------------------------------------------------


class VGTVAE(comfy.sd.VAE):
    """VGT-AE as a VAE of the host: encode, decode, their tiled forms and out-of-memory fallbacks are the host's own."""

    def __init__(self, autoencoder: Autoencoder, config: AutoencoderConfig, dtype: torch.dtype):
        with _quiet("No VAE weights detected"):
            super().__init__(sd={})  # sets every default this version of the host knows, and no model
        self.first_stage_model = autoencoder
        self.latent_channels = LATENT_CHANNELS
        self.downscale_ratio = self.upscale_ratio = TOKEN_PIXELS
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
            per_patch * (shape[-2] * shape[-1] // 14**2) * (memory.dtype_size(dtype) + 4) // 2
        )
        self.patcher = _Patcher(autoencoder, load_device=self.device, offload_device=memory.vae_offload_device())

    # The host's stock VAE nodes call these four: bad input ends here in a sentence, not in the middle of the model.

    def encode(self, pixel_samples, *arguments, **options):
        return super().encode(_checked_pixels(pixel_samples), *arguments, **options)

    def encode_tiled(self, pixel_samples, *arguments, **options):
        return super().encode_tiled(_checked_pixels(pixel_samples), *arguments, **options)

    def decode(self, samples_in, *arguments, **options):
        check_latent(samples_in)
        return super().decode(samples_in, *arguments, **options)

    def decode_tiled(self, samples, *arguments, **options):
        check_latent(samples)
        return super().decode_tiled(samples, *arguments, **options)

    def make_ready(self, shape: tuple[int, ...], needed: int) -> bool:
        """Load for previews of that shape beside a run that needs so many bytes, unless there is no room for both."""
        needed += self.memory_used_decode(shape, self.vae_dtype)
        room = max(memory.minimum_inference_memory(), needed + memory.extra_reserved_memory())
        missing = self.patcher.model_size() - self.patcher.loaded_size()
        if self.device.type != "cpu" and memory.get_free_memory(self.device) < 1.1 * missing + room:
            logging.info("VGT: no previews, since there is no room for the VAE beside the model.")
            return False
        memory.load_models_gpu([self.patcher], memory_required=needed)
        return True

    def encode_tiled_(self, pixel_samples, tile_x=448, tile_y=448, overlap=56):
        # the host halves and doubles the tile; all of it must stay a multiple of 28
        tile_x, tile_y = (max(1, tile // (2 * TOKEN_PIXELS)) * 2 * TOKEN_PIXELS for tile in (tile_x, tile_y))
        overlap = max(1, overlap // TOKEN_PIXELS) * TOKEN_PIXELS
        return super().encode_tiled_(
            pixel_samples, tile_x, tile_y, min(overlap, min(tile_x, tile_y) // 2 - TOKEN_PIXELS)
        )

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


def _checked_pixels(image: Tensor) -> Tensor:
    """image [B, H, W, C] → its first three channels. Raises ValueError for one smaller than a token or not finite."""
    height, width = image.shape[1:3]
    if min(height, width) < TOKEN_PIXELS:
        raise ValueError(
            f"The image is {width}x{height}; a VGT latent needs at least {TOKEN_PIXELS}x{TOKEN_PIXELS} pixels, so "
            "scale it up, or use pad or stretch of VGT Encode."
        )
    if not torch.isfinite(image).all():
        raise ValueError("The image holds NaN or infinite values; make it again.")
    return image[..., :3]


def fit_to_tokens(image: Tensor, fit: str) -> Tensor:
    """image [B, H, W, C] → the same with H and W multiples of 28, at least 28."""
    height, width = image.shape[1:3]
    if fit == "crop":
        return image  # the VAE itself crops, around the centre
    if fit == "pad":
        bottom, right = -height % TOKEN_PIXELS, -width % TOKEN_PIXELS
        return F.pad(image.movedim(-1, 1), (0, right, 0, bottom), mode="replicate").movedim(1, -1)
    if fit != "stretch":
        raise ValueError(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.")
    size = [nearest_multiple(side) for side in (width, height)]
    return comfy.utils.common_upscale(image.movedim(-1, 1), *size, "bicubic", "disabled").movedim(1, -1).clamp(0, 1)


def nearest_multiple(side: int) -> int:
    """The multiple of 28 nearest to a side in pixels, at least 28."""
    return max(1, round(side / TOKEN_PIXELS)) * TOKEN_PIXELS


# --- drawing -----------------------------------------------------------------------------------------------------


def generate(model: VGTModel, progress: ProgressReport, prompts: list[str], negative: str | None, **settings) -> Tensor:
    """vgt.generation.generate on the host's device. A batch that does not fit is drawn in two halves."""
    patcher = model.patcher
    needed = _sampling_memory(model, prompts, negative, settings)
    memory.load_models_gpu([patcher], memory_required=needed)
    start = progress.begin((settings["height"] // TOKEN_PIXELS, settings["width"] // TOKEN_PIXELS), needed)
    try:
        return generation.generate(
            patcher.model, model.tokenizer, prompts, negative, device=patcher.load_device, progress=progress, **settings
        )
    except memory.OOM_EXCEPTION as error:
        if len(prompts) == 1:
            raise RuntimeError(
                "There is not enough memory to draw one image of this size; choose a smaller size, fewer tokens per "
                "step, or fp8_e4m3fn in VGT Loader."
            ) from error
    memory.soft_empty_cache()
    logging.warning(f"VGT: not enough memory for {len(prompts)} images at once, drawing them in two parts.")
    halves = []
    middle = len(prompts) // 2
    for part in (slice(None, middle), slice(middle, None)):
        progress.rewind(start)
        latent = settings["latent"]
        rows = {"latent": None if latent is None else latent[part], "batch_index": settings["batch_index"][part]}
        halves.append(generate(model, progress, prompts[part], negative, **settings | rows))
    return torch.cat(halves)


def _sampling_memory(model: VGTModel, prompts: list[str], negative: str | None, settings: dict) -> int:
    """Bytes a run needs beside the weights: KV cache, activations of the largest step, modulations, noise."""
    generator = model.patcher.model
    language, head = generator.config.language, generator.config.flow_head
    size = memory.dtype_size(generator.dtype)
    guided = settings["cfg"] > 1
    rows = len(prompts) * (2 if guided else 1)
    text = max(model.tokenizer(prompts[:1], [negative] if guided else None).lengths)
    tokens = settings["height"] * settings["width"] // TOKEN_PIXELS**2
    drawn = tokens if settings["mask"] is None else int(settings["mask"].sum())
    given = tokens - drawn
    together = settings["tokens_per_step"]
    group = max(group_sizes(drawn, together, settings["grouping"]))
    slots = text + 2 * given + (3 if together > 1 else 2) * drawn
    cache = 2 * language.depth * rows * language.kv_heads * slots * language.head_width * size
    inputs = max(text + 2 * given + group, 3 * group)
    activations = inputs * (4 * language.mlp_width + 6 * language.width) + language.heads * inputs**2
    activations *= rows * size
    steps = settings["flow"].steps
    # the flow head makes them for 1024 rows at a time, and drops the last ones when it has the next
    modulated = rows * group * min(steps, 2 * max(1, 1024 // (rows * group)))
    modulations = modulated * (3 * head.depth + 2) * head.width * size * 9 // 8
    noise = len(prompts) * tokens * steps * LATENT_CHANNELS * 4
    return cache + max(activations, modulations) + noise


class ProgressReport:
    """Moves the node's bar token by token, shows the picture so far, and lets Cancel through."""

    INTERVAL = 0.5
    """Seconds between previews, at least."""
    SHARE = 0.04
    """Of the run's time that previews may take."""

    def __init__(self, model: VGTModel, total: int):
        self._bar = comfy.utils.ProgressBar(max(1, total))
        self._vae = model.vae
        self._before = self._done = 0
        self._previews = False
        self._began = self._shown = time.monotonic()
        self._spent = self._cost = 0.0
        self._step_done = None

    def begin(self, grid: tuple[int, int], needed: int) -> int:
        """A run of so many tokens and bytes begins; returns the token count to rewind to should it fail."""
        memory.throw_exception_if_processing_interrupted()
        self._before = self._done
        self._previews = args.preview_method != LatentPreviewMethod.NoPreviews and self._vae.make_ready(
            (1, LATENT_CHANNELS, *grid), needed
        )
        return self._before

    def rewind(self, start: int) -> None:
        self._done = start

    def __call__(self, progress: generation.Progress) -> None:
        if progress.latent.is_cuda:  # the device may be one step behind, no more, or Cancel and the bar would lie
            if self._step_done is not None:
                self._step_done.synchronize()
            self._step_done = torch.cuda.Event()
            self._step_done.record()
        memory.throw_exception_if_processing_interrupted()
        self._done = self._before + progress.done
        if self._preview_is_due():
            self._shown = time.monotonic()
            picture = self._picture(progress)
            self._bar.update_absolute(self._done, preview=("JPEG", picture, min(args.preview_size, max(picture.size))))
            self._cost = time.monotonic() - self._shown
            self._spent += self._cost
        else:
            self._bar.update_absolute(self._done)

    def _preview_is_due(self) -> bool:
        """At most twice a second, and at a cost below its share of the run so far."""
        now = time.monotonic()
        return (
            self._previews
            and now - self._shown >= self.INTERVAL
            and self._spent + self._cost <= self.SHARE * (now - self._began)
        )

    def _picture(self, progress: generation.Progress) -> Image.Image:
        """The first image of the batch, grey where no token is known yet."""
        vae = self._vae
        pixels = vae.first_stage_model.decode(progress.latent[:1].to(vae.device, vae.vae_dtype))[0].float().cpu()
        known = progress.known.repeat_interleave(TOKEN_PIXELS, 0).repeat_interleave(TOKEN_PIXELS, 1)
        pixels = torch.where(known, pixels, torch.zeros(())).clamp(-1, 1)
        return Image.fromarray(((pixels + 1) * 127.5).round().byte().movedim(0, -1).numpy())
