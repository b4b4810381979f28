"""The layouts that InternVL is published in are one after reading."""

import torch

from vgt.families import family, recognise_published

NAMES = {  # of transformers before and after 4.52, and of the models' own repositories
    "language_model.model.norm.weight": ("language_model.model.norm.weight", "model.language_model.norm.weight"),
    "vision_model.embeddings.class_embedding": (
        "vision_tower.embeddings.cls_token",
        "model.vision_tower.embeddings.cls_token",
    ),
    "vision_model.encoder.layers.3.ls2": (
        "vision_tower.encoder.layer.3.lambda_2",
        "model.vision_tower.encoder.layer.3.lambda_2",
    ),
    "mlp1.3.bias": ("multi_modal_projector.linear_2.bias", "model.multi_modal_projector.linear_2.bias"),
}


def test_names_of_every_layout_are_read():
    for found in (family("internvl3"), family("internvl3_5")):
        for own, others in NAMES.items():
            for name in (own, *others):
                assert list(found.from_hub({name: torch.zeros(1)})) == [own], name


def test_queries_keys_and_values_are_joined_in_their_order():
    prefix = "model.vision_tower.encoder.layer.0.attention."
    parts = {f"{prefix}{part}_proj.weight": torch.full((2, 4), float(at)) for at, part in enumerate("qkv")}
    (joined,) = family("internvl3").from_hub(parts).items()
    assert joined[0] == "vision_model.encoder.layers.0.attn.qkv.weight"
    assert joined[1][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_what_a_published_file_is_of_shows_in_its_language_model_or_config():
    tower = {"encoder.embeddings.patch_embedding.weight": None}
    name = "lmm.language_model.model.layers.0.self_attn.{}.weight"
    for tensors, config, expected in (
        (tower, {}, "internvl3"),
        (tower, {"llm_config": {"model_type": "qwen2"}}, "internvl3"),
        (tower, {"llm_config": {"model_type": "qwen3"}}, "internvl3_5"),
        (tower | {name.format("q_proj"): None}, {"llm_config": {"model_type": "qwen3"}}, "internvl3"),
        (tower | {name.format("q_norm"): None}, {}, "internvl3_5"),
    ):
        assert recognise_published(tensors, config).name == expected
