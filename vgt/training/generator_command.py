"""The generator's command: from a base VLM and a tokenizer file to a whole model in one file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import IterableDataset

from ..config import FlowHeadConfig, GeneratorConfig, ModelConfig
from ..families import families, family
from ..files.checkpoint import Checkpoint, CheckpointError, load_state
from ..files.reading import read_checkpoint
from ..files.single_file import save_checkpoint
from ..latent_rgb import ROWS, LatentRGB, fit
from ..model import build_autoencoder
from ..prompt import PromptTokenizer
from ..run.generation import Generator
from ..sampling import SamplingSettings
from .base_model import BaseModel, load_base
from .build import new_generator
from .captioning import Captioner
from .command import check_whole, read_settings, read_table, require
from .data import caption_of, open_data, open_held_out
from .generator import GeneratorStage, Objective, Review
from .latents import cached_latents
from .processes import rank_and_world
from .settings import Settings, TrainingError
from .text import seen_words
from .trainer import train

FILE = "model.safetensors"
FITTED = 300
"""Pictures that the matrix for previews is fitted on."""


def run(config: dict, out: Path, until: int | None) -> None:
    """Train from `config` into `out`/model.safetensors (bfloat16).

    The table [recommended] says how the model is to be drawn where nobody says otherwise (sampling.SamplingSettings);
    its size is that of the data. Beside the tables: base, the VLM's folder; autoencoder, a tokenizer file; init, a
    whole model to go on from.
    """
    settings = read_settings(config)
    require(config, "base", "autoencoder", "data.size", "generator.query_grid", "generator.flow_head")
    objective = read_table(config, "objective", Objective)
    size = config["data"]["size"]
    recommended = _recommended({"height": size, "width": size, **config.get("recommended", {})})
    base, checkpoint, generator = begin(config, settings)
    if objective.caption and family(base.family).caption is None:
        able = " and ".join(found.title for found in families() if found.caption)
        raise TrainingError(f"objective.caption is for {able} alone; leave it out for {base.family}.")
    autoencoder = build_autoencoder(checkpoint, dtype=torch.float32).to(settings.device)
    if "init" in config:
        start = read_checkpoint(config["init"])
        if start.config.generator != generator.config:
            raise CheckpointError(f"{config['init']} is a generator of other sizes than the configuration's.")
        load_state(generator, start.state("generator"), start.path, "this generator")
        generator.requires_grad_(True)

    data = dict(config["data"])
    count = data.pop("count", None)
    dataset = open_data(data, captions=True, token_pixels=base.token_pixels)
    if count is None:
        if isinstance(dataset, IterableDataset):
            raise TrainingError("[data] lacks count, how many pictures of the shards to encode.")
        count = len(dataset)
    check_whole("data.count", count)
    tokens = (data["size"] // base.token_pixels) ** 2
    if not all(0 <= drawn < tokens for drawn in objective.openings):
        raise TrainingError(
            f"objective.openings is {list(objective.openings)}; of {tokens} tokens 0 to {tokens - 1} can be drawn."
        )
    if objective.places is not None:
        check_whole("objective.places", objective.places)
    layers = generator.config.language.depth
    if not 0 <= objective.frozen <= layers:
        raise TrainingError(f"objective.frozen is {objective.frozen}; the language model has {layers} layers.")
    if not objective.draws and (objective.repa or not objective.guess):
        raise TrainingError(
            "objective.draws is 0, so there is no flow head to learn; set objective.guess alone, or draws."
        )
    review = None
    if "held_out" in config:
        held_out = open_held_out(config["held_out"], captions=True, token_pixels=base.token_pixels)
        prompts = [caption_of(held_out, index) for index in range(min(16, len(held_out)))]
        review = read_table(config, "sheet", Review, autoencoder=autoencoder, prompts=prompts, size=data["size"])
    cache = Path(config.get("latents", out / "latents"))
    features = bool(objective.repa or objective.caption)
    latents = cached_latents(
        cache, dataset, autoencoder, data, count, settings.device, features=features, workers=settings.workers
    )
    found = family(base.family)
    tokenizer = PromptTokenizer(base.tokenizer_json, base.pad_token, found.template_for(base.language))
    captioner = Captioner(base.tokenizer_json, found.caption, base.pad_token) if objective.caption else None
    stage = GeneratorStage(generator, tokenizer, objective, latents, settings, review, captioner)
    trained = train(stage, settings, out, config, until=until)
    if until is None and rank_and_world()[0] == 0:
        captions = None if isinstance(dataset, IterableDataset) else (caption_of(dataset, i) for i in range(count))
        words = seen_words(Path(config["base"]), captions)
        attribution = getattr(dataset, "attribution", None)
        write_model(
            out / FILE,
            checkpoint,
            trained,
            base,
            recommended,
            vocabulary=words,
            latent_rgb=_latent_rgb(dataset, latents),
            attribution=attribution,
        )


def begin(config: dict, settings: Settings) -> tuple[BaseModel, Checkpoint, Generator]:
    """The base VLM of a configuration, its tokenizer file, and a new generator with the base's language model."""
    table = config["generator"]
    flow_head = read_table({"generator.flow_head": table["flow_head"]}, "generator.flow_head", FlowHeadConfig)
    base = load_base(config["base"], config.get("family"), table.get("layers"))
    checkpoint = read_checkpoint(config["autoencoder"])
    if checkpoint.config.family != base.family:
        raise TrainingError(f"{config['autoencoder']} is a tokenizer of {checkpoint.config.family}, not {base.family}.")
    grid = table["query_grid"]
    sizes = GeneratorConfig(base.language, flow_head, tuple(grid) if isinstance(grid, list) else grid)
    generator = new_generator(sizes, base.family, settings.seed, base.token_pixels)
    generator.language_model.load_state_dict(base.language_state)
    return base, checkpoint, generator


def _recommended(table: dict) -> SamplingSettings:
    try:
        settings = SamplingSettings.from_dict(table)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"[recommended] cannot be used: {error}") from error
    if unknown := sorted(table.keys() - settings.to_dict().keys()):
        raise TrainingError(f"The [recommended] table holds the unknown {unknown[0]!r}.")
    return settings


def _latent_rgb(dataset, latents) -> LatentRGB | None:
    """The matrix for previews, of some of the pictures; None where these cannot be read again, or are too few."""
    count = min(len(latents), FITTED)
    if isinstance(dataset, IterableDataset) or count * latents[0][0][0].numel() < ROWS:
        return None
    return fit((latents[index][0][None], dataset[index][0][None]) for index in range(count))


def write_model(
    path: Path,
    autoencoder: Checkpoint,
    generator,
    base,
    recommended: SamplingSettings,
    **about,
) -> None:
    """One file with everything, in bfloat16; about: what else a `Checkpoint` may hold."""
    config = ModelConfig(base.family, autoencoder.config.autoencoder, generator.config, base.pad_token)
    tensors = {name: tensor for name, tensor in autoencoder.tensors.items() if name.startswith("autoencoder.")}
    tensors.update({f"generator.{name}": tensor.cpu() for name, tensor in generator.state_dict().items()})
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_checkpoint(Checkpoint(path, config, tensors, base.tokenizer_json, recommended, **about), path)
