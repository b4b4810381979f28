"""Scores captions: says whether one is true of its scene, and for a model which share of its captions is.

`python -m vgt.training.caption_truth MODEL.safetensors` captions held-out scenes with a model's own vision tower and
language model (output head tied to the embedding).
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

import torch

from ..scenes.captions import NUMBERS, RELATION_WORDS
from ..scenes.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Scene, ScenesDataset

_COUNTS = {word: count for count, words in NUMBERS.items() for word in words} | {"a": 1, "an": 1}
_THING = re.compile(
    rf"(?:\b({'|'.join(sorted(_COUNTS, key=len, reverse=True))}) )?"
    rf"(?:\b({'|'.join(COLOURS)}) )?"
    rf"\b({'|'.join(SHAPES)})(?:es|s)?\b"
)


def judge(caption: str, scene: Scene) -> dict[str, bool]:
    """Tells what a caption gets right: {"true": all that it says, and "shapes", "colours", "counts", "background" and
    "relation" as far as it speaks of them}.

    A caption must name as many objects as there are; it may leave colours, background and relation unsaid.
    """
    things = [(_COUNTS.get(count, 1), colour or None, shape) for count, colour, shape in _THING.findall(caption)]
    shapes = Counter(thing.shape for thing in scene.objects)
    said = Counter()
    for count, _, shape in things:
        said[shape] += count
    verdict = {"shapes": set(said) == set(shapes), "counts": sum(said.values()) == sum(shapes.values())}
    right = said == shapes
    coloured = [(count, colour, shape) for count, colour, shape in things if colour]
    if coloured:
        there = Counter((thing.colour, thing.shape) for thing in scene.objects)
        verdict["colours"] = {colour for _, colour, _ in coloured} <= {thing.colour for thing in scene.objects}
        right &= all(there[colour, shape] == count for count, colour, shape in coloured)
    grounds = [name for name in BACKGROUNDS if re.search(rf"\b{name}\b", caption)]
    if grounds:
        verdict["background"] = grounds == [scene.background]
        right &= verdict["background"]
    relation = next((n for n, words in RELATION_WORDS.items() if any(f" {word} " in caption for word in words)), None)
    if relation is not None and len(things) == 2:
        places = [next((o for o in scene.objects if o.shape == shape), None) for _, _, shape in things]
        if all(places):
            dx, dy = RELATIONS[relation]
            one, other = places
            verdict["relation"] = (one.x - other.x) * dx + (one.y - other.y) * dy > 0.1
            right &= verdict["relation"]
    return {"true": right, **verdict}


@torch.no_grad()
def score(autoencoder, language_model, captioner, dataset: ScenesDataset, count: int) -> dict:
    """Caption the first `count` scenes → the share of right ones, by what `judge` tells apart."""
    from .captioning import describe

    right, asked = Counter(), Counter()
    for start in range(0, count, 64):
        chosen = range(start, min(start + 64, count))
        pixels = torch.stack([dataset[index][0] for index in chosen])
        grid = tuple(side // autoencoder.token_pixels for side in pixels.shape[2:])
        features = autoencoder.semantic_features(pixels)
        for index, caption in zip(chosen, describe(language_model, captioner, features, grid)):
            for name, verdict in judge(caption, dataset.scene(index)[0]).items():
                right[name] += verdict
                asked[name] += 1
    return {name: right[name] / asked[name] for name in asked}


def main() -> None:
    from ..families import family
    from ..files.reading import read_checkpoint
    from ..model import build_autoencoder, build_generator
    from .captioning import Captioner

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    options = parser.parse_args()
    checkpoint = read_checkpoint(options.model)
    template = family(checkpoint.config.family).caption
    if checkpoint.config.generator is None or template is None:
        parser.error(f"{options.model} is no full VGT model of a family with a chat template for captions")
    captioner = Captioner(checkpoint.tokenizer_json, template, checkpoint.config.pad_token)
    autoencoder = build_autoencoder(checkpoint, dtype=torch.float32)
    language_model = build_generator(checkpoint, dtype=torch.float32).language_model
    dataset = ScenesDataset(options.size, seed=2, split=options.split, length=options.count)
    for name, share in score(autoencoder, language_model, captioner, dataset, options.count).items():
        print(f"{name:12} {share:.3f}")


if __name__ == "__main__":
    main()
