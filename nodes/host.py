"""What touches the host: model folders, loading, memory management, progress, preview, interrupt. The VAE: vae.py."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import comfy
import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

from ..vgt import generation, hub
from ..vgt.checkpoint import convert, read_checkpoint
from ..vgt.config import INTERNVL3, LATENT_CHANNELS, TOKEN_PIXELS
from ..vgt.model import build_autoencoder, build_generator, build_tokenizer
from ..vgt.plan import group_sizes
from ..vgt.prompt import PromptTokenizer
from ..vgt.qwen_tokenizer import build_family_tokenizer
from .vae import VGTVAE, Patcher, free_memory, is_paged, room_for

FOLDER = "vgt"
"""Name of the models folder, also in extra_model_paths.yaml."""

DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}

_BUNDLED = Path(__file__).parent.parent / "models"


# --- models ------------------------------------------------------------------------------------------------------


@dataclass
class VGTModel:
    """What VGT Loader hands to VGT AR Sampler: the generator under the host's memory management."""

    name: str
    patcher: comfy.model_patcher.ModelPatcher | None
    """None for a tokenizer-only model."""
    tokenizer: PromptTokenizer | None
    vae: VGTVAE

    def is_dynamic(self) -> bool:
        """Newer hosts' node cache asks: short of memory, it keeps what it can page out and drops the rest."""
        return self.patcher is None or is_paged(self.patcher)


def register_model_folder() -> None:
    """Make models/vgt, and the models that come with this pack, known to the host."""
    for path in (str(_BUNDLED), str(Path(folder_paths.models_dir) / FOLDER)):
        folder_paths.add_model_folder_path(FOLDER, path)
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {".safetensors", ".pth"})


def warn_if_installed_twice() -> None:
    """Of two copies of this pack the host keeps the nodes of the one it imports last, without a word."""
    import nodes as host_nodes  # the host's own module, in its process alone

    other = host_nodes.NODE_CLASS_MAPPINGS.get("VGTLoader")
    if other is None:
        return
    folder = Path(__file__).parent.parent
    first = folder.with_name(str(getattr(other, "RELATIVE_PYTHON_MODULE", "")).rpartition(".")[2])
    logging.warning(
        f"VGT is installed twice, in {first} and in {folder}: remove one of the two folders, then start ComfyUI again."
    )


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
    operations = _Operations
    if compute is None:
        compute = torch.bfloat16 if memory.should_use_bf16(device) else torch.float32
    elif compute == torch.float8_e4m3fn:
        compute = torch.bfloat16
        operations = _Float8Operations
    autoencoder = build_autoencoder(checkpoint, dtype=compute, operations=_Operations)
    vae = VGTVAE(autoencoder, checkpoint.config.autoencoder, compute)
    patcher = tokenizer = None
    if checkpoint.config.generator:
        tokenizer = build_tokenizer(checkpoint)
        generator = build_generator(checkpoint, dtype=compute, operations=operations)
        patcher = _GeneratorPatcher(generator, load_device=device, offload_device=memory.unet_offload_device())
    return VGTModel(name, patcher, tokenizer, vae), vae


class _GeneratorPatcher(Patcher):
    """Graphs hold memory, and the addresses of weights: both go when the host wants the weights elsewhere."""

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:  # else the host asks before every run, and moves nothing
            self.model.graphs.clear()
        return super().unpatch_model(device_to, unpatch_weights)

    def partially_unload(self, *arguments, **options):
        self.model.graphs.clear()
        return super().partially_unload(*arguments, **options)


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


class _Whole:
    """Newer hosts with dynamic VRAM make Linear and Embedding without their weights until a state dict brings them,
    unless the class loads state dicts itself. Ours are compared with the file first, so they are made whole.
    """

    def _load_from_state_dict(self, *arguments):
        torch.nn.Module._load_from_state_dict(self, *arguments)


class _Operations(comfy.ops.disable_weight_init):
    """The host's layers."""

    class Linear(_Whole, comfy.ops.disable_weight_init.Linear):
        pass

    class Embedding(_Whole, comfy.ops.disable_weight_init.Embedding):
        pass


class _Float8Operations(comfy.ops.manual_cast):
    """Linear weights kept in float8; everything small stays as it is."""

    class Embedding(_Whole, comfy.ops.manual_cast.Embedding):
        pass

    class Linear(_Whole, comfy.ops.manual_cast.Linear):
        def __init__(self, *arguments, **factory):
            super().__init__(*arguments, **factory)
            self.weight = torch.nn.Parameter(self.weight.to(torch.float8_e4m3fn), requires_grad=False)


def require_generator(model: VGTModel) -> VGTModel:
    if not isinstance(model, VGTModel):  # a value that the interface cannot send, but the API can
        raise ValueError("The model is not VGT's; connect the VGT_MODEL of VGT Loader.")
    if model.patcher is None:
        raise ValueError(f"{model.name} is a tokenizer only and cannot draw; load a full VGT model.")
    return model


# --- drawing -----------------------------------------------------------------------------------------------------


def generate(model: VGTModel, progress: ProgressReport, prompts: list[str], negative: str | None, **settings) -> Tensor:
    """vgt.generation.generate on the host's device. A batch that does not fit is drawn in two halves."""
    patcher = model.patcher
    needed = _sampling_memory(model, prompts, negative, settings)
    if free_memory(patcher) < room_for(needed):
        patcher.model.graphs.clear()  # rather than have the host unload weights for want of what these hold
        memory.soft_empty_cache()
    memory.load_models_gpu([patcher], memory_required=needed)
    device = patcher.load_device
    start = progress.begin((settings["height"] // TOKEN_PIXELS, settings["width"] // TOKEN_PIXELS), needed)
    try:
        if len(prompts) == 1 or needed <= free_memory(patcher):
            return generation.generate(
                patcher.model,
                model.tokenizer,
                prompts,
                negative,
                device=device,
                graphs=not is_paged(patcher),
                progress=progress,
                **settings,
            )
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        patcher.model.graphs.clear()
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


def _is_out_of_memory(error: Exception) -> bool:
    """Newer hosts know more forms of it than one exception; of a CUDA graph it is a RuntimeError."""
    known = memory.is_oom(error) if hasattr(memory, "is_oom") else isinstance(error, memory.OOM_EXCEPTION)
    return known or (isinstance(error, RuntimeError) and "out of memory" in str(error))


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
        self._total = total
        self._vae = model.vae
        self._sampler = model.patcher
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
            (1, LATENT_CHANNELS, *grid), needed, self._sampler
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
        """At most twice a second and within its share of the run so far; at the end, not to leave an unfinished one."""
        if not self._previews:
            return False
        if self._done >= self._total:
            return self._spent > 0
        now = time.monotonic()
        within = self._spent + 2 * self._cost <= self.SHARE * (now - self._began)  # this one and the last
        return within and now - self._shown >= self.INTERVAL

    def _picture(self, progress: generation.Progress) -> Image.Image:
        """The first image of the batch, grey where no token is known yet."""
        vae = self._vae
        pixels = vae.first_stage_model.decode(progress.latent[:1].to(vae.device, vae.vae_dtype))[0].float().cpu()
        known = progress.known.repeat_interleave(TOKEN_PIXELS, 0).repeat_interleave(TOKEN_PIXELS, 1)
        pixels = torch.where(known, pixels, torch.zeros(())).clamp(-1, 1)
        return Image.fromarray(((pixels + 1) * 127.5).round().byte().movedim(0, -1).numpy())
