"""Models and folders: what the Loader lists, loads and downloads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import comfy
import comfy.model_management as memory
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch

from ...vgt.families import family
from ...vgt.files import hub
from ...vgt.files.reading import convert, read_checkpoint
from ...vgt.latent_rgb import LatentRGB
from ...vgt.model import build_autoencoder, build_generator, build_tokenizer
from ...vgt.prompt import PromptTokenizer
from ...vgt.sampling import SamplingSettings
from .operations import Float8Operations, Operations
from .patcher import generator_patcher, is_paged
from .vae import VGTVAE, vae_dtype

FOLDER = "vgt"
"""Name of the models folder, also in extra_model_paths.yaml."""

DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}

_BUNDLED = Path(__file__).parents[2] / "models"

_SUCCESSORS = {"vgt-tiny.safetensors": "vgt-drawings.safetensors"}
"""Models that came with earlier versions, and what takes their place in workflows of that time."""


@dataclass
class VGTModel:
    """What VGT Loader hands to VGT AR Sampler: the generator under the host's memory management."""

    name: str
    patcher: comfy.model_patcher.ModelPatcher | None
    """None for a tokenizer-only model."""
    tokenizer: PromptTokenizer | None
    vae: VGTVAE
    recommended: SamplingSettings
    """How the model's maker would draw."""
    latent_rgb: LatentRGB | None = None
    """For previews without the VAE."""
    compile: bool = False
    """Whether flow head and language model are compiled."""

    @property
    def token_pixels(self) -> int:
        """Side in pixels of a token."""
        return self.vae.token_pixels

    def get_ram_usage(self) -> int:
        """Bytes of main memory; older hosts' node cache asks, to know what dropping this would free."""
        if self.patcher is None:
            return 0
        table = self.patcher.model.language_model.embed_tokens
        return self.patcher.model_size() + memory.module_size(table)

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
    folder = Path(__file__).parents[2]
    first = folder.with_name(str(getattr(other, "RELATIVE_PYTHON_MODULE", "")).rpartition(".")[2])
    logging.warning(
        f"VGT is installed twice, in {first} and in {folder}: remove one of the two folders, then start ComfyUI again."
    )


def model_names() -> list[str]:
    """Names for the Loader's list: what is on the disk, then what can be downloaded; tokenizers alone last."""
    files = [name for name in folder_paths.get_filename_list(FOLDER) if not name.startswith(hub.WORK)]
    files.sort(key=lambda name: (not (_BUNDLED / name).is_file(), name))
    names = [*files, *hub.PUBLISHED]
    return sorted(names, key=lambda name: name.lower().replace("_", "-").startswith("vgt-ae"))


def load_model(name: str, dtype: str) -> tuple[VGTModel, VGTVAE]:
    """Load a model by its name in the list, downloading a published one that is absent.

    Raises CheckpointError, FileNotFoundError, HubError, and ValueError for a dtype that is none of DTYPES.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    name, path = _find_model(name.replace("\\", "/"))  # as Windows writes it into a workflow
    checkpoint = read_checkpoint(path, _host_tokenizer, _model_path)
    device = memory.get_torch_device()
    compute = DTYPES[dtype]
    operations = Operations
    if compute is None:
        compute = torch.bfloat16 if memory.should_use_bf16(device) else torch.float32
    elif compute == torch.float8_e4m3fn:
        _check_float8(device)
        compute = torch.bfloat16
        operations = Float8Operations
    pixels = vae_dtype(DTYPES[dtype], compute)
    vae = VGTVAE(
        build_autoencoder(checkpoint, dtype=pixels, operations=Operations), checkpoint.config.autoencoder, pixels
    )
    vae.patcher.cached_patcher_init = (_vae_patcher, (name, dtype))  # newer hosts move a VAE to another GPU with it
    patcher = tokenizer = None
    if checkpoint.config.generator:
        vae.model_side = max(checkpoint.recommended.width, checkpoint.recommended.height)
        tokenizer = build_tokenizer(checkpoint)
        # The flow head is small and read in every flow step: in float8 it would be cast 30 times a token.
        generator = build_generator(checkpoint, dtype=compute, operations=operations, head_operations=Operations)
        patcher = generator_patcher(generator)
    return VGTModel(name, patcher, tokenizer, vae, checkpoint.recommended, checkpoint.latent_rgb), vae


def _find_model(name: str) -> tuple[str, Path | str]:
    """The name of a model, or of its successor, and its file; a published one is downloaded.

    Raises FileNotFoundError for a file that is not there.
    """
    if name in hub.PUBLISHED:
        return name, _download(name)
    for wanted in (name, _SUCCESSORS.get(name)):
        if wanted and (path := folder_paths.get_full_path(FOLDER, wanted)):
            return wanted, path
    raise FileNotFoundError(f"There is no model {name} in models/{FOLDER}; put it there or choose another.")


def _vae_patcher(name: str, dtype: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The patcher of a VAE of its own; disable_dynamic: of a class that pages nothing."""
    patcher = load_model(name, dtype)[1].patcher
    if disable_dynamic:
        return comfy.model_patcher.ModelPatcher(patcher.model, patcher.load_device, patcher.offload_device)
    return patcher


def _check_float8(device: torch.device) -> None:
    """Raises ValueError where the device cannot make bf16 of float8."""
    try:
        torch.zeros(1, dtype=torch.float8_e4m3fn).to(device).to(torch.bfloat16)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"The device {device} cannot use fp8_e4m3fn; choose bf16 or auto in VGT Loader.") from error


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


def _model_path(name: str) -> str | None:
    """Where a distilled head's model lies, which need not be the head's own folder."""
    return folder_paths.get_full_path(FOLDER, name)


def _host_tokenizer(name: str) -> bytes | None:
    """A family's tokenizer, made from a vocabulary that the host carries for its text encoders; None without one."""
    found = family(name)
    folder = Path(comfy.__path__[0]) / "text_encoders" / (found.host_vocabulary or "")
    if found.host_vocabulary is None or not (folder / "vocab.json").is_file():
        return None
    return found.host_tokenizer(folder)


def require_generator(model: VGTModel) -> VGTModel:
    if not isinstance(model, VGTModel):  # a value that the interface cannot send, but the API can
        raise ValueError("The model is not VGT's; connect the VGT_MODEL of VGT Loader.")
    if model.patcher is None:
        raise ValueError(f"{model.name} is a tokenizer only and cannot draw; load a full VGT model.")
    return model
