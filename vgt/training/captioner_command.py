"""Runs the captioner's stage: builds a small VLM and its tokenizer, trains it and writes it in the hub layout."""

from __future__ import annotations

from pathlib import Path

from ..config import LanguageModelConfig
from ..families import families
from ..scenes.drawings import DrawingsDataset
from ..scenes.wordings import COMMON, WORDINGS
from ..scenes.world import ScenesDataset
from .build import new_language_model, seeded
from .captioner_stage import CaptionerStage
from .captioning import Captioner, VisionLanguageModel
from .command import read_settings, read_table, require
from .data import DataError, ShardDataset, caption_of, open_data, open_held_out
from .processes import rank_and_world
from .text import save_words, train_tokenizer
from .trainer import train

_TEMPLATE_TEXTS = ("user\nGenerate an image: ", "Generate an image.", "assistant\n", "Describe the image.", "<img>")


def run(config: dict, out: Path, until: int | None) -> None:
    """Train from `config` into `out`/base: a VLM of the first family that has a template for captions."""
    from tokenizers import Tokenizer

    settings = read_settings(config)
    require(config, "data", "held_out", "tokenizer.captions", "tokenizer.vocabulary", "vision", "language")
    found = next(found for found in families() if found.caption)
    vision = read_table(config, "vision", found.vision_config)
    reading = {"captions": True, "token_pixels": vision.token_pixels}
    dataset, held_out = open_data(config["data"], **reading), open_held_out(config["held_out"], **reading)
    if isinstance(dataset, ShardDataset):
        raise DataError("data.kind is 'webdataset'; a captioner needs folder or scenes, to learn its words from.")
    captions = [caption_of(dataset, index) for index in range(min(config["tokenizer"]["captions"], len(dataset)))]
    texts = captions + list(_TEMPLATE_TEXTS) * max(1, len(captions) // 10)
    wordings = WORDINGS if isinstance(dataset, ScenesDataset) else ()
    if isinstance(dataset, DrawingsDataset):
        wordings = COMMON
    tokenizer_json = train_tokenizer(texts, config["tokenizer"]["vocabulary"], found.special_tokens, wordings)
    vocabulary = Tokenizer.from_str(tokenizer_json).get_vocab_size()
    language = read_table(config, "language", LanguageModelConfig, vocabulary=vocabulary)
    with seeded(settings.seed):
        tower = vision.build(language.width)
    vlm = VisionLanguageModel(tower, new_language_model(language, settings.seed))
    captioner = Captioner(tokenizer_json, found.caption, found.template.pad)
    weight = config.get("thumbnail_weight", 0.0)
    stage = CaptionerStage(vlm, captioner, vision.token_pixels, dataset, held_out, settings, weight)
    trained = train(stage, settings, out, config, until=until)
    if until is None and rank_and_world()[0] == 0:
        from .base_model import save_base

        save_base(out / "base", found.name, vision, language, trained, tokenizer_json)
        save_words(out / "base", captions)
