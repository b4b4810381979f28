"""The distilled head's command: from a whole model to a head of one, two or four evaluations a token."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch.utils.data import IterableDataset

from ..files.head_file import generator_digest, save_head, with_head
from ..files.reading import read_checkpoint
from ..files.single_file import save_checkpoint
from ..model import build_generator, build_tokenizer
from ..run.flow import FlowSettings
from ..sampling import SamplingSettings
from .command import read_settings, read_table, require
from .conditions import Recording, recorded_conditions
from .data import caption_of, open_data
from .head import HeadStage, Objective, new_head
from .processes import rank_and_world
from .settings import TrainingError
from .trainer import train

HEAD = "head.safetensors"
MODEL = "model.safetensors"


def run(config: dict, out: Path, until: int | None) -> None:
    """Train from `config` into `out`/head.safetensors and `out`/model.safetensors (bfloat16).

    Beside the tables: model, the whole model in one file that the head is for; conditions, the folder of what is
    recorded (default: `out`/conditions).
    """
    settings = read_settings(config)
    require(config, "model", "data.size")
    objective = read_table(config, "objective", Objective)
    recording = read_table(config, "recording", Recording)
    if objective.draws < 2:
        raise TrainingError(f"objective.draws is {objective.draws}; it must be at least 2.")
    recommended = _recommended(config)
    checkpoint = read_checkpoint(config["model"])
    if checkpoint.config.generator is None:
        raise TrainingError(f"{config['model']} is a tokenizer only; give a full VGT model.")
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" and settings.device != "cpu" else torch.float32
    generator = build_generator(checkpoint, dtype=dtype, device=settings.device)
    dataset = open_data(config["data"], captions=True, token_pixels=generator.token_pixels)
    if isinstance(dataset, IterableDataset):
        raise TrainingError(
            "data.kind is 'webdataset'; captions are asked for one by one, so it must be folder or scenes."
        )
    wanted = min(len(dataset), recording.runs * recording.batch)
    conditions = recorded_conditions(
        Path(config.get("conditions", out / "conditions")),
        generator,
        build_tokenizer(checkpoint),
        [caption_of(dataset, index) for index in range(wanted)],
        (config["data"]["size"],) * 2,
        recording,
        generator_digest(checkpoint),
        settings.device,
    )
    sizes = checkpoint.config.generator
    head = new_head(generator.flow_head, sizes.flow_head, sizes.language.width, settings.seed)
    stage = HeadStage(head, generator.flow_head, conditions, objective, settings)
    del generator
    trained = train(stage, settings, out, config, until=until)
    if until is None and rank_and_world()[0] == 0:
        state = {name: tensor.to("cpu", torch.bfloat16) for name, tensor in trained.state_dict().items()}
        save_head(state, sizes.flow_head, checkpoint, recommended, out / HEAD)
        save_checkpoint(with_head(checkpoint, state, sizes.flow_head, recommended), out / MODEL)


def _recommended(config: dict) -> SamplingSettings:
    """The [recommended] table: how the model is to be drawn with its head; absent, two evaluations a token."""
    table = config.get("recommended", {})
    flow = {"steps": 2, "solver": "distilled"}
    known = {field.name for kind in (SamplingSettings, FlowSettings) for field in fields(kind)} - {"flow"}
    if not isinstance(table, dict) or (table.keys() - known):
        raise TrainingError(f"recommended is {table!r}; it must be a table of sampling settings.")
    return SamplingSettings.from_dict(flow | table)
