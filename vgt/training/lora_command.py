"""The command for a LoRA: a model and a folder of pictures with captions into one small file."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from torch.utils.data import IterableDataset

from ..files.lora import read_lora, save_lora
from ..lora import base_of_generator
from ..model import load
from ..sampling import SamplingSettings
from .command import check_whole, read_settings, read_table, require
from .data import open_data
from .generator import Objective, Review
from .latents import cached_latents
from .lora import OBJECTIVE, LoraSettings, LoraStage, Pictures, begin, draw_kept, finish
from .processes import rank_and_world
from .settings import TrainingError
from .trainer import train

FILE = "lora.safetensors"


def run(config: dict, out: Path, until: int | None) -> None:
    """Train from `config` into `out`/lora.safetensors (float32).

    Beside the tables: model, the base, as vgt.load takes it; init, a LoRA to go on from; keep, prompts of what must not
    be forgotten, a list or a text file with one a line; prompts, the same for the sample sheets.
    """
    settings = read_settings(config)
    require(config, "model", "data.size")
    model = load(config["model"], settings.device)
    if model.generator is None:
        raise TrainingError(f"{config['model']} is a tokenizer only and cannot be taught; give a full VGT model.")
    lora = read_table(config, "lora", LoraSettings)
    objective = _objective(config)
    init = read_lora(config["init"]) if "init" in config else None
    base = base_of_generator(model.name, model.config.family, dict(model.generator.named_parameters()))
    adapters, before = begin(model.generator, lora, settings.seed, base, init, str(config.get("init")))
    pictures = _pictures(config, out, model, settings)
    drawn = SamplingSettings(seed=settings.seed).filled(model.recommended)
    drawn = replace(drawn, height=config["data"]["size"], width=config["data"]["size"])
    kept = draw_kept(model.generator, model.tokenizer, _texts(config, "keep"), drawn)
    review = None
    if prompts := _texts(config, "prompts"):
        review = Review(model.autoencoder, prompts, config["data"]["size"], drawn.cfg, drawn.tokens_per_step)
    stage = LoraStage(model.generator, model.tokenizer, adapters, lora, objective, pictures, settings, review, kept)
    with adapters.on(model.generator):
        trained = train(stage, settings, out, config, until=until)
    if until is None and rank_and_world()[0] == 0:
        save_lora(finish(trained, base, before + settings.steps), out / FILE)


def _objective(config: dict) -> Objective:
    """The [objective] table, over the LoRA's own defaults."""
    given = read_table(config, "objective", Objective)
    named = config.get("objective", {})
    for other in ("repa", "caption", "openings"):
        if named.get(other):
            raise TrainingError(f"objective.{other} is for the whole generator; leave it out for a LoRA.")
    return replace(
        OBJECTIVE, **{field.name: getattr(given, field.name) for field in fields(given) if field.name in named}
    )


def _pictures(config: dict, out: Path, model, settings) -> Pictures:
    data = dict(config["data"])
    count = data.pop("count", None)
    dataset = open_data(data, captions=True, token_pixels=model.config.token_pixels)
    if count is None:
        if isinstance(dataset, IterableDataset):
            raise TrainingError("[data] lacks count, how many pictures of the shards to encode.")
        count = len(dataset)
    check_whole("data.count", count)
    cache = Path(config.get("latents", out / "latents"))
    encoded = cached_latents(
        cache, dataset, model.autoencoder, data, count, settings.device, features=False, workers=settings.workers
    )
    items = [encoded[index] for index in range(count)]
    return Pictures([latent for latent, _, _ in items], [caption for _, caption, _ in items])


def _texts(config: dict, name: str) -> list[str]:
    texts = config.get(name, [])
    if isinstance(texts, str):
        try:
            texts = [line.strip() for line in Path(texts).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"{texts} cannot be read as prompts, one a line ({error}).") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TrainingError(f"{name} is {texts!r}; it must be a list of prompts, or a file of them.")
    return texts
