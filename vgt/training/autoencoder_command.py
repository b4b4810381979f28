"""Runs the tokenizer's stages: makes a tokenizer file of a base VLM (stage 1) or of a trained tokenizer (stage 2)."""

from __future__ import annotations

from pathlib import Path

from ..config import AutoencoderConfig, ModelConfig, PixelDecoderConfig
from ..files.checkpoint import Checkpoint, CheckpointError, load_state
from ..files.reading import read_checkpoint
from ..files.single_file import save_checkpoint
from .autoencoder import AutoencoderStage, Objective
from .base_model import load_base, load_pixel_decoder
from .build import new_autoencoder
from .command import read_settings, read_table, require
from .data import open_data, open_held_out
from .processes import rank_and_world
from .trainer import train

FILE = "autoencoder.safetensors"


def run(config: dict, out: Path, until: int | None) -> None:
    """Train from `config` into `out`/autoencoder.safetensors.

    Beside the tables: base, the VLM's folder; init, a tokenizer file to go on from; dc_ae, a pixel decoder's folder.
    """
    settings = read_settings(config)
    require(config, "base", "data", "held_out")
    objective = read_table(config, "objective", Objective)
    decoder = read_table(config, "decoder", PixelDecoderConfig)
    base = load_base(config["base"], config.get("family"))
    reading = {"captions": False, "token_pixels": base.token_pixels}
    dataset, held_out = open_data(config["data"], **reading), open_held_out(config["held_out"], **reading)
    sizes = AutoencoderConfig(base.vision, base.language.width, decoder)
    autoencoder = new_autoencoder(sizes, settings.seed)
    autoencoder.vision_tower.load_state_dict(base.vision_state)
    if "dc_ae" in config:
        load_pixel_decoder(autoencoder.pixel_decoder, config["dc_ae"])
    if "init" in config:
        start = read_checkpoint(config["init"])
        if start.config.autoencoder != sizes:
            raise CheckpointError(f"{config['init']} is a tokenizer of other sizes than the configuration's.")
        load_state(autoencoder, start.state("autoencoder"), start.path, "this tokenizer")
        autoencoder.requires_grad_(True)
    teacher = base.vision.build(base.language.width)
    teacher.load_state_dict(base.vision_state)
    stage = AutoencoderStage(autoencoder, objective, dataset, held_out, settings, teacher)
    trained = train(stage, settings, out, config, until=until)
    if until is None and rank_and_world()[0] == 0:
        tensors = {f"autoencoder.{name}": tensor.cpu() for name, tensor in trained.state_dict().items()}
        save_checkpoint(Checkpoint(out / FILE, ModelConfig(base.family, sizes), tensors, None), out / FILE)
