"""A whole model: tokenizer (VGT-AE) and, in a full checkpoint, generator (VGT-AR)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .families import family
from .files.by_name import find
from .files.checkpoint import Checkpoint, CheckpointError, load_state
from .files.reading import read_checkpoint
from .files.sizes import LayoutError
from .networks.autoencoder import Autoencoder
from .prompt import PromptTokenizer
from .run.beginning import Beginning
from .run.control import Change, Region
from .run.generation import Generator, Progress, generate
from .run.record import RunRecord
from .sampling import SamplingSettings

if TYPE_CHECKING:
    from PIL.Image import Image


class Model:
    """What `vgt.load` returns.

    Attributes: config; autoencoder; generator and tokenizer, None in a tokenizer-only model; device; dtype;
    recommended, how its maker would draw (what is open in it: as published); name, of its file, for messages.
    """

    def __init__(
        self,
        config: ModelConfig,
        autoencoder: Autoencoder,
        generator: Generator | None,
        tokenizer: PromptTokenizer | None,
        device: torch.device,
        dtype: torch.dtype,
        recommended: SamplingSettings | None = None,
        name: str = "the model",
    ):
        self.config = config
        self.autoencoder = autoencoder
        self.generator = generator
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        self.recommended = recommended or SamplingSettings()
        self.name = name

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Image to latent: pixels [B, 3, H, W] in [0, 1] → [B, 32, h, w], float32.

        H and W are h and w tokens of `config.token_pixels`; ValueError for other sizes. A token's 32 numbers have mean
        0 and variance 1, so they lie within ±5.6.
        """
        return self.autoencoder.encode(pixels.to(self.device, self.dtype))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Latent to image: latent [B, 32, h, w] → pixels [B, 3, H, W], float32.

        Black is -1 and white 1 (`encode` takes [0, 1]); unclamped, so values may lie a little outside.
        """
        return self.autoencoder.decode(latent.to(self.device, self.dtype)).float()

    def generate(
        self,
        prompts: str | Sequence[str],
        negative: str | Sequence[str] | None = None,
        *,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        mask: Tensor | None = None,
        batch_index: Sequence[int] | None = None,
        regions: Sequence[Region] = (),
        changes: Sequence[Change] = (),
        order_map: Tensor | None = None,
        stop_at: float = 1.0,
        record: RunRecord | None = None,
        beginning: Beginning | None = None,
        graphs: bool = True,
        compile: bool = False,
        progress: Callable[[Progress], None] | None = None,
        **settings,
    ) -> Tensor:
        """Prompts → latent [B, 32, h, w], float32.

        settings: the fields of sampling.SamplingSettings, height, seed, cfg …; the model's own where left out. The
        other arguments are run.generation.generate's. Raises ValueError for a tokenizer-only model or an argument out
        of range, TypeError for one that does not exist.
        """
        if self.generator is None:
            raise ValueError("This model is a tokenizer only and cannot generate; load a full VGT checkpoint.")
        return generate(
            self.generator,
            self.tokenizer,
            prompts,
            negative,
            SamplingSettings(**settings).filled(self.recommended),
            noise=noise,
            latent=latent,
            mask=mask,
            batch_index=batch_index,
            regions=regions,
            changes=changes,
            order_map=order_map,
            stop_at=stop_at,
            record=record,
            beginning=beginning,
            device=self.device,
            graphs=graphs,
            compile=compile,
            progress=progress,
        )

    def draw(
        self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None, **arguments
    ) -> list[Image]:
        """Prompts → PIL images, one a prompt. Takes `generate`'s arguments and raises what it raises."""
        return [to_image(pixels) for pixels in self.decode(self.generate(prompts, negative, **arguments))]

    def with_lora(self, path: str | Path, strength: float = 1.0) -> Model:
        """The model with a LoRA file applied; it stays as it is itself, and shares the weights that do not change.

        strength: counts what was learnt so many times; negative ones take it away. Raises FileNotFoundError, and
        files.lora.LoraError for a file that is no plain LoRA, or of another model.
        """
        from .lora import with_lora

        return with_lora(self, path, strength)


def to_image(pixels: Tensor) -> Image:
    """What `decode` gives for one image, [3, H, W] in [-1, 1] → a PIL image; what lies outside is clamped."""
    from PIL import Image

    return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).cpu().numpy())


def load(path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Model:
    """Load a model.

    Args:
        path: a .safetensors of ours; a folder in the published layout (weights, base/, dc_ae/), the full checkpoint if
            it holds one, else the tokenizer alone; one weight file in such a folder; or the name of a published model
            (files/hub.py), which is downloaded when it is first asked for and kept in the user's cache folder, or in
            the one that VGT_HOME names.
        dtype: to compute in; None is float32 on the CPU and bfloat16 elsewhere.

    Raises FileNotFoundError, CheckpointError when the file is not a whole VGT model, or HubError for a download.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    checkpoint = read_checkpoint(find(path))
    autoencoder = build_autoencoder(checkpoint, dtype=dtype, device=device)
    generator = tokenizer = None
    if checkpoint.config.generator:
        generator = build_generator(checkpoint, dtype=dtype, device=device)
        tokenizer = build_tokenizer(checkpoint)
    recommended, name = checkpoint.recommended, checkpoint.path.name
    return Model(checkpoint.config, autoencoder, generator, tokenizer, device, dtype, recommended, name)


def build_autoencoder(checkpoint: Checkpoint, *, dtype: torch.dtype, operations=nn, device="cpu") -> Autoencoder:
    """VGT-AE with its weights; on the CPU they are memory-mapped where the file is in `dtype` already."""
    with _named_in_errors(checkpoint):
        module = Autoencoder(checkpoint.config.autoencoder, operations=operations, device="meta", dtype=dtype)
    taken_for = f"a VGT-AE ({checkpoint.config.family})"
    load_state(module, checkpoint.state("autoencoder"), checkpoint.path, taken_for, device)
    return module.to(device).eval()


def build_generator(
    checkpoint: Checkpoint, *, dtype: torch.dtype, operations=nn, head_operations=None, device="cpu"
) -> Generator:
    """VGT-AR with its weights; on the CPU they are memory-mapped where the file is in `dtype` already.

    head_operations: the layers of the flow head, where they are not those of the rest.
    """
    config = checkpoint.config
    layers = {"operations": operations, "head_operations": head_operations}
    options = {**layers, "device": "meta", "dtype": dtype}
    with _named_in_errors(checkpoint):
        module = Generator(config.generator, config.family, config.token_pixels, **options)
    load_state(module, checkpoint.state("generator"), checkpoint.path, f"a VGT generator ({config.family})", device)
    return module.to(device).eval()


@contextmanager
def _named_in_errors(checkpoint: Checkpoint):
    """Name the file where its parts cannot be built, because what they are built from is not here."""
    try:
        yield
    except LayoutError as error:
        raise CheckpointError(f"{checkpoint.path.name} cannot be loaded: {error}.") from error


def build_tokenizer(checkpoint: Checkpoint) -> PromptTokenizer:
    """The prompt tokenizer of a full model.

    Raises FileNotFoundError when the checkpoint came without one, CheckpointError when it is none.
    """
    if checkpoint.tokenizer_json is None:
        raise FileNotFoundError(
            f"{checkpoint.path.name} has no tokenizer beside it; put the base model's tokenizer.json into base/."
        )
    try:
        config, vocabulary = checkpoint.config, checkpoint.vocabulary
        template = family(config.family).template_for(config.generator.language)
        return PromptTokenizer(checkpoint.tokenizer_json, config.pad_token, template, vocabulary)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path.name} cannot be loaded: {error}") from error
