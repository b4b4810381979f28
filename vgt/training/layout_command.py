"""The command of the stage before a generator of drawings: names get looks, and the model learns what lies where."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..families import family
from ..model import build_autoencoder
from ..prompt import PromptTokenizer
from ..sampling import SamplingSettings
from ..scenes.drawings import DrawingsDataset
from .autoencoder import latent_of
from .command import check_whole, read_settings, require
from .data import open_data
from .generator_command import FILE, begin, write_model
from .layout import LayoutStage
from .layout_data import LayoutDataset
from .looks import are_names, check_looks, components, give_looks, word_looks
from .processes import rank_and_world
from .run_state import CHECKPOINT
from .settings import TrainingError
from .trainer import train


def run(config: dict, out: Path, until: int | None) -> None:
    """Train from `config` into `out`/model.safetensors, a whole model that cannot draw yet; a generator's `init`.

    Tables and keys as a generator's. layout.looks: how many numbers of a name's embedding begin as the look of what it
    names (looks.py).
    """
    settings = read_settings(config)
    require(config, "base", "autoencoder", "data.size", "generator.query_grid", "generator.flow_head", "layout.looks")
    count, data = config["layout"]["looks"], config["data"]
    check_whole("layout.looks", count)
    base, checkpoint, generator = begin(config, settings)
    check_looks(count, base.language)
    dataset = open_data(data, captions=True, token_pixels=base.token_pixels)
    if not isinstance(dataset, DrawingsDataset):
        raise TrainingError(f"data.kind is {data.get('kind')!r}; what lies where is known of drawings alone.")
    tokenizer = PromptTokenizer(base.tokenizer_json, base.pad_token, family(base.family).template_for(base.language))
    autoencoder = build_autoencoder(checkpoint, dtype=torch.float32).to(settings.device)
    codes, words, first = _looks(dataset, autoencoder, tokenizer, count, base.language.vocabulary)
    if not (out / CHECKPOINT).is_file():
        give_looks(generator, words, first, settings.seed)
    layout = LayoutDataset(dataset, data["size"] // base.token_pixels)
    stage = LayoutStage(generator, tokenizer, layout, codes, are_names(words), settings)
    trained = train(stage, settings, out, config, until=until)
    if until is None and rank_and_world()[0] == 0:
        size = SamplingSettings(data["size"], data["size"])
        write_model(out / FILE, checkpoint, trained, base, size, attribution=dataset.attribution)


@torch.no_grad()
def _looks(dataset, autoencoder, tokenizer: PromptTokenizer, count: int, vocabulary: int) -> tuple[Tensor, Tensor, int]:
    """The looks of a data set's things [N, count] and of its words [vocabulary, count]; and a prompt's first token."""
    captions, seen = [], []
    device = next(autoencoder.parameters()).device
    for texts, pictures in dataset.things():
        tokenized = tokenizer(texts, None)
        captions.append([ids[:length] for ids, length in zip(tokenized.ids.tolist(), tokenized.lengths)])
        seen.append(latent_of(autoencoder, pictures.to(device), normalised=True)[1].flatten().half().cpu())
    codes = components(torch.stack(seen), count)
    return codes, word_looks(codes, captions, vocabulary), captions[0][0][0]
