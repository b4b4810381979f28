"""A small generator, trained by one process or shared out over several: what their processes run."""

import torch

from vgt.config import FlowHeadConfig, GeneratorConfig, LanguageModelConfig
from vgt.families import family
from vgt.prompt import PromptTokenizer
from vgt.run.generation import generate
from vgt.sampling import SamplingSettings
from vgt.training.build import new_generator
from vgt.training.generator import GeneratorStage, Objective
from vgt.training.settings import Settings
from vgt.training.text import train_tokenizer
from vgt.training.trainer import train

CONFIG = GeneratorConfig(LanguageModelConfig(32, 2, 2, 1, 48, 300, head_width=16), FlowHeadConfig(32, 2), 4)


class OfTwo(GeneratorStage):
    """One process that does the work of two: their shares of a batch, each with its own random numbers."""

    def batches(self, first, rank, world):
        return zip(super().batches(first, 0, 2), super().batches(first, 1, 2))

    def forward(self, batch, rng):
        parts = [
            super(OfTwo, self).forward(share, torch.Generator().manual_seed(rng.initial_seed() + rank))
            for rank, share in enumerate(batch)
        ]
        losses = {name: sum(own[name] for _, own in parts) / 2 for name in parts[0][1]}
        return sum(loss for loss, _ in parts) / 2, losses


def review(generator, tokenizer, folder, step):
    latent = generate(generator, tokenizer, ["a red circle"], settings=SamplingSettings(56, 56))
    return {"drawn": float(latent.abs().mean())}


def learn(folder, kind, shard, *stops):
    """Train in `folder`, in this process and in the others of its group: up to each of the stops, then to the end.

    shard: share the weights out, with gradient checkpointing.
    """
    found = family("qwen2_5_vl")
    text = train_tokenizer(["a red circle"] * 9, 300, found.special_tokens).encode()
    tokenizer = PromptTokenizer(text, found.special_tokens[0], found.template)
    rng = torch.Generator().manual_seed(1)
    data = [(torch.randn(32, 2, 2, generator=rng), "a red circle", torch.empty(0)) for _ in range(8)]
    settings = Settings(
        6, 4, 3e-3, warmup=1, log_every=1, save_every=3, sheet_every=3, checkpointing=shard, shard=shard
    )
    for until in (*stops, None):
        stage = kind(new_generator(CONFIG, "qwen2_5_vl", 0), tokenizer, Objective(), data, settings, review)
        train(stage, settings, folder, {}, until=until)
