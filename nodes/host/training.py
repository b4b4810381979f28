"""Training a LoRA under the host: its memory, its bar, its Cancel."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import comfy.model_management as memory
import comfy.utils
import folder_paths
import torch
from PIL import Image
from torch import Tensor, nn

from ...vgt.config import LATENT_CHANNELS
from ...vgt.files.lora import save_lora
from ...vgt.networks.adapters import PARTS, Adapters
from ...vgt.run import generation
from ...vgt.sampling import SamplingSettings, default_side
from ...vgt.training.lora import OBJECTIVE, LoraSettings, LoraStage, Pictures, begin, draw_kept, finish
from ...vgt.training.memory import lora_memory
from ...vgt.training.settings import Settings, TrainingError
from ...vgt.training.trainer import train
from .drawing import is_out_of_memory
from .loading import VGTModel
from .lora import apply, base_of_model
from .training_pictures import latents_of, pairs
from .vae import VGTVAE

TRAINED = {"everything": tuple(PARTS)} | {part: (part,) for part in PARTS}
"""What the node lets choose from: what the adapters are put on."""
PREVIEWS = 10
"""Pictures that a run shows of what it has learnt, at most; fewer where they would take long."""
SHARE = 0.05
"""Of the run's time that they may take."""


def train_lora(
    model: VGTModel,
    vae: VGTVAE,
    images: list[Tensor],
    texts: list[str],
    existing: dict[str, Tensor] | None,
    existing_name: str,
    *,
    steps: int,
    batch_size: int,
    accumulation: int,
    learning_rate: float,
    rank: int,
    alpha: float,
    train: str,
    seed: int,
    keep: str,
    sample_prompt: str,
    gradient_checkpointing: bool,
) -> tuple[VGTModel, dict[str, Tensor], dict, int]:
    """The training node's work: the model with the LoRA, the LoRA, its losses, and the steps that it has seen.

    existing: a LoRA to go on from. Raises ValueError, one sentence, for pictures, captions or settings that cannot be
    used, and where the loss is not finite; what was learnt so far is then in output/loras, as after Cancel.
    """
    if train not in TRAINED:
        raise ValueError(f"train is {train!r}; it must be one of {', '.join(TRAINED)}.")
    images, texts = pairs(images, texts)
    memory.unload_all_models()
    with torch.inference_mode(False), torch.no_grad():
        lora = LoraSettings(rank, alpha, TRAINED[train], checkpointing=gradient_checkpointing)
        base = base_of_model(model)
        adapters, before = begin(model.patcher.model, lora, seed, base, existing, existing_name)
        side = min(default_side(model.token_pixels, grid) for grid in model.patcher.model.config.grid)
        pictures = Pictures(latents_of(vae, images, side), texts)
        run = _Run(model, vae, adapters, lora, pictures, before)
        prompts = [line.strip() for line in keep.splitlines() if line.strip()]
        settings = Settings(
            steps,
            batch_size,
            learning_rate,
            accumulation,
            warmup=min(10, steps),
            weight_decay=0.0,
            seed=seed,
            device=str(model.patcher.load_device),
            dtype="float32" if model.patcher.model.dtype == torch.float32 else "bfloat16",
            save_every=steps,
            sheet_every=steps,
        )
        with _explained(settings, lora), run.loaded(settings, prompts):
            run.train(settings, prompts, sample_prompt.strip() or texts[0])
        tensors = finish(adapters.cpu(), base, before + steps)
    return apply(model, tensors, "The LoRA", 1.0), tensors, {"loss": run.losses}, before + steps


class _Run:
    """One training run."""

    def __init__(self, model, vae, adapters: Adapters, lora: LoraSettings, pictures: Pictures, before: int):
        self.model, self.vae, self.adapters, self.lora, self.pictures = model, vae, adapters, lora, pictures
        self.before = before
        self.losses: list[float] = []
        self.good: tuple[int, dict[str, Tensor]] | None = None
        sizes = Counter(tuple(latent.shape[1:]) for latent, _ in pictures.items)
        self.grid = sizes.most_common(1)[0][0]

    @property
    def generator(self) -> generation.Generator:
        return self.model.patcher.model

    def drawn(self, seed: int) -> SamplingSettings:
        """How the model draws while it learns: pictures of the size of most that it learns from."""
        height, width = (side * self.model.token_pixels for side in self.grid)
        own = SamplingSettings(seed=seed).filled(self.model.recommended)
        return replace(own, height=height, width=width)

    @contextmanager
    def loaded(self, settings: Settings, prompts: list[str]):
        """Inside, all of the generator lies on its device, as tensors that gradients can flow through."""
        patcher = self.model.patcher
        captions = [*(caption for _, caption in self.pictures.items), *prompts]
        longest = max(self.model.tokenizer([caption], None).lengths[0] for caption in captions)
        largest = max(latent.shape[1] * latent.shape[2] for latent, _ in self.pictures.items)
        needed = lora_memory(
            self.generator.config,
            self.lora,
            OBJECTIVE,
            batch=settings.batch_size * (2 if prompts else 1),  # as many to keep as to learn
            text=longest,
            tokens=largest,
            itemsize=memory.dtype_size(self.generator.dtype),
        )
        self.generator.graphs.clear()
        memory.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
        logging.info(f"VGT: training needs some {needed / 2**20:.0f} MB beside the model.")
        kept = {}
        for module in self.generator.modules():
            for name, weight in module._parameters.items():
                if weight is not None and weight.is_inference():
                    # The host makes weights in inference mode, which autograd refuses; this is the same memory.
                    alias = torch.empty(0, dtype=weight.dtype, device=weight.device)
                    alias.set_(weight.untyped_storage(), weight.storage_offset(), weight.shape, weight.stride())
                    kept[module, name] = weight
                    module._parameters[name] = nn.Parameter(alias, requires_grad=False)
        try:
            yield
        finally:
            for (module, name), weight in kept.items():
                module._parameters[name] = weight
            torch.set_flush_denormal(False)
            memory.soft_empty_cache()

    def train(self, settings: Settings, prompts: list[str], sample_prompt: str) -> None:
        device = self.model.patcher.load_device
        kept = draw_kept(self.generator, self.model.tokenizer, prompts, self.drawn(settings.seed), device)
        stage = LoraStage(
            self.generator,
            self.model.tokenizer,
            self.adapters,
            self.lora,
            OBJECTIVE,
            self.pictures,
            settings,
            None,
            kept,
        )
        watch = _Watch(self, settings, sample_prompt)
        with tempfile.TemporaryDirectory(dir=_temporary()) as folder:
            try:
                with torch.enable_grad(), self.adapters.on(self.generator):
                    train(stage, settings, Path(folder), {}, watch=watch)
            except BaseException as error:  # Cancel is one in newer hosts
                state = self.good if isinstance(error, TrainingError) else (len(self.losses), self.adapters.tensors())
                if state is None or not state[0]:
                    raise
                path = self._leave(*state)
                if isinstance(error, TrainingError):
                    raise TrainingError(f"{error} What was learnt by step {state[0]} is in {path}.") from error
                raise

    def _leave(self, done: int, tensors: dict[str, Tensor]) -> Path:
        """Write what was learnt into output/loras."""
        steps = self.before + done
        base = replace(base_of_model(self.model), steps=steps)
        folder = Path(folder_paths.get_output_directory()) / "loras"
        path = folder / f"VGT_stopped_{steps}_steps_{time.strftime('%Y%m%d_%H%M%S')}.safetensors"
        save_lora({**tensors, "vgt.lora": base.tensor()}, path)
        logging.warning(f"VGT: training stopped; what was learnt by step {steps} is in {path}, to go on from.")
        return path


class _Watch:
    """Called after each step: moves the bar, shows a picture now and then, keeps a good state, lets Cancel in."""

    KEEP = 10
    """Steps between two states that are kept; of the first steps each is."""

    def __init__(self, run: _Run, settings: Settings, prompt: str):
        self.run, self.settings, self.prompt = run, settings, prompt
        self.state: tuple[int, dict[str, Tensor]] | None = None
        self.bar = comfy.utils.ProgressBar(settings.steps)
        self.began, self.spent, self.cost = time.monotonic(), 0.0, 0.0

    def __call__(self, done: int, figures: dict[str, float]) -> None:
        self.run.losses.append(figures["flow"])
        if self.state is not None:  # it is good, since the loss after it was finite
            self.run.good, self.state = self.state, None
        if done < self.KEEP or done % self.KEEP == 0:
            self.state = done, self.run.adapters.tensors()
        memory.throw_exception_if_processing_interrupted()
        preview = None
        if self._is_due(done):
            began = time.monotonic()
            preview = "JPEG", self._picture(), 512
            self.cost = time.monotonic() - began
            self.spent += self.cost
        self.bar.update_absolute(done, preview=preview)

    def _is_due(self, done: int) -> bool:
        every = max(1, self.settings.steps // PREVIEWS)
        return done % every == 0 and self.spent + self.cost <= SHARE * (time.monotonic() - self.began)

    @torch.no_grad()
    def _picture(self) -> Image.Image:
        run = self.run
        device = run.model.patcher.load_device
        parts = run.generator, run.model.tokenizer, [self.prompt], None, run.drawn(self.settings.seed)
        latent = generation.generate(*parts, device=device, graphs=False)
        run.vae.make_ready((1, LATENT_CHANNELS, *run.grid), 0, run.model.patcher)
        pixels = run.vae.first_stage_model.decode(latent.to(run.vae.device, run.vae.vae_dtype))[0].float().cpu()
        return Image.fromarray(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).numpy())


@contextmanager
def _explained(settings: Settings, lora: LoraSettings):
    """Out of memory says which of the settings to change."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if settings.batch_size > 1:
            change = f"lower batch_size ({settings.batch_size}) and raise accumulation instead"
        elif not lora.checkpointing:
            change = "switch gradient_checkpointing on"
        else:
            change = f"lower rank ({lora.rank}), train a part only, or choose fp8_e4m3fn in VGT Loader"
        raise RuntimeError(f"There is not enough memory to train; {change}.") from error


def _temporary() -> str:
    """The host's folder for what need not stay."""
    folder = folder_paths.get_temp_directory()
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder
