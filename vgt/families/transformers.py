"""Any VLM that the transformers library loads and whose image features form a grid, where it has no file of its own.

Its vision part and its language model are the library's, imported when such a model is used and not before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..networks.transformers_language import (
    TransformersLanguageConfig,
    TransformersLanguageModel,
    language_state,
    measure_language,
)
from ..networks.transformers_library import LibraryError, brief, check_source, class_and_config, library, parts_of
from ..networks.transformers_library import plain_config as plain
from ..networks.transformers_vision import TransformersVisionConfig, measure_vision, prepare, vision_state
from ..prompt import PromptTemplate
from ._family import BaseParts, Family

_MARK = "VGT-PROMPT"
"""Stands for the prompt while a chat template is read."""


class Transformers(Family):
    name = "transformers"
    title = "the transformers library"
    fallback = True

    vision_config = TransformersVisionConfig
    language_config = TransformersLanguageConfig
    language_model = TransformersLanguageModel

    def reads_base(self, config: dict) -> bool:
        return isinstance(config.get("model_type"), str)

    def reads_published(self, names: Mapping, config: dict) -> bool:
        return False

    def check_vision(self, vision: TransformersVisionConfig) -> None:
        check_source(vision.source)
        if len(vision.mean) != 3 or len(vision.std) != 3 or not all(value > 0 for value in vision.std):
            raise ValueError("the means and deviations that its pixels are normalised with are not three each")

    def check_language(self, language: TransformersLanguageConfig) -> None:
        check_source(language.source)
        if language.turn.count("{text}") != 1:
            raise ValueError("its prompt template has no place for the prompt")

    def template_for(self, language: TransformersLanguageConfig) -> PromptTemplate:
        return replace(self.template, turn=language.turn)

    def load_base(self, folder: Path, config: dict, layers: int | None) -> BaseParts:
        source = json.dumps(_with_layers(plain(config), layers))
        kind, configuration = class_and_config(source)
        mean, std = _pixel_statistics(folder)
        turn, pad = _turn_and_pad(folder)
        try:
            model, report = kind.from_pretrained(
                folder,
                config=configuration,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:  # of whatever code the library has for it
            raise LibraryError(f"transformers cannot load it ({brief(error)})") from error
        missing = sorted(name for name in report["missing_keys"] if "lm_head" not in name)
        if missing:
            raise LibraryError(f"its files lack {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1)))
        vision, language = parts_of(model.eval())
        prepare(vision)
        sizes = replace(measure_language(language, source), turn=turn)
        tower = measure_vision(vision, source, sizes.width, mean, std)
        return BaseParts(tower, sizes, vision_state(vision), language_state(language), pad)


def _with_layers(config: dict, layers: int | None) -> dict:
    """A config.json whose language model has no more than so many layers."""
    if layers is None:
        return config
    text = dict(config.get("text_config") or config)
    text["num_hidden_layers"] = min(layers, text.get("num_hidden_layers", layers))
    if isinstance(text.get("layer_types"), list):
        text["layer_types"] = text["layer_types"][: text["num_hidden_layers"]]
    return {**config, "text_config": text} if config.get("text_config") else text


def _pixel_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel that the model's pixels are normalised with."""
    data = _json(folder / "processor_config.json").get("image_processor")
    data = data or _json(folder / "preprocessor_config.json")
    if data.get("do_normalize") is False:
        return (0.0,) * 3, (1.0,) * 3
    try:
        mean, std = (tuple(float(value) for value in data[f"image_{name}"]) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise LibraryError("preprocessor_config.json beside it tells no image_mean and image_std; add it") from error
    return mean, std


def _turn_and_pad(folder: Path) -> tuple[str, str]:
    """A user's turn with {text} for what they say, up to where the answer begins; and the token to pad with."""
    try:
        tokenizer = library().PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of whatever code the library has for it
        raise LibraryError(f"transformers cannot read its tokenizer ({brief(error)})") from error
    pad = tokenizer.pad_token or tokenizer.eos_token
    if pad is None:
        raise LibraryError("its tokenizer files name no pad_token and no eos_token")
    template = tokenizer.chat_template or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        return f"{_escaped(tokenizer.bos_token or '')}{{text}}\n", pad
    for content in ([{"type": "text", "text": _MARK}], _MARK):
        messages = [{"role": "user", "content": content}]
        try:
            turn = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # templates raise what they like for a form of content that they do not take
            continue
        if turn.count(_MARK) == 1 and "'type'" not in turn:
            return _escaped(turn).replace(_MARK, "{text}"), pad
    raise LibraryError("its chat template puts no prompt into a user's turn")


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LibraryError(f"{path.name} beside it is no JSON ({error})") from error
    return data if isinstance(data, dict) else {}


FAMILY = Transformers()
