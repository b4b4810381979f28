"""Configurations of a miniature of every training stage, and what their runs logged."""

import json

from vgt.training import autoencoder_command

SCENES = {"kind": "scenes", "size": 56, "seed": 1, "length": 256}
HELD_OUT = {"kind": "scenes", "size": 56, "seed": 2, "length": 4, "split": "test"}
VISION = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 48, "full_attention": [1]}
LANGUAGE = {"width": 32, "depth": 2, "heads": 2, "kv_heads": 1, "head_width": 16, "mlp_width": 64, "max_positions": 512}
DECODER = {"widths": [8, 16, 32], "blocks": [1, 1, 1], "attention": [False, False, False]}


def training(**changes):
    table = {"steps": 12, "batch_size": 4, "learning_rate": 3e-3, "warmup": 1, "log_every": 1, "threads": 1}
    return {**table, "device": "cpu", "dtype": "float32", "save_every": 3, "sheet_every": 12, **changes}


def captioner(**changes):
    return {
        "data": SCENES,
        "held_out": HELD_OUT,
        "tokenizer": {"vocabulary": 400, "captions": 100},
        "vision": VISION,
        "language": LANGUAGE,
        "thumbnail_weight": 5.0,
        "training": training(**changes),
    }


def autoencoder(base, objective=None, **changes):
    weights = {"distillation": 0.1, "adversarial": 0.05, "adversarial_from": 6, "noise": 0.1}
    return {
        "base": str(base / "base"),
        "data": SCENES,
        "held_out": HELD_OUT,
        "decoder": DECODER,
        "objective": {**weights, **(objective or {})},
        "training": training(**changes),
    }


def generator(base, tokenizer, **changes):
    return {
        "base": str(base / "base"),
        "autoencoder": str(tokenizer / autoencoder_command.FILE),
        "data": {**SCENES, "count": 32},
        "generator": {"query_grid": 4, "flow_head": {"width": 32, "depth": 2}},
        "objective": {"caption": 0.1, "repa": 0.1, "openings": [0, 2]},
        "training": training(ema=0.9, **changes),
    }


def losses(folder, name="loss"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def toml(config):
    """The lines of a configuration of numbers, texts and lists, one level of tables deep."""
    for name, value in config.items():
        if not isinstance(value, dict):
            yield f"{name} = {json.dumps(value)}"
    for name, table in config.items():
        if isinstance(table, dict):
            yield f"[{name}]"
            yield from (f"{key} = {json.dumps(value)}" for key, value in table.items())
