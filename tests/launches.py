"""How many kernels a token launches, counted on a CUDA device that is not there."""

from functools import cache

import torch

import recorded
import vgt
from fake_cuda import FakeCuda
from vgt.config import GeneratorConfig, LanguageModelConfig
from vgt.run.generation import Generator, generate
from vgt.sampling import SamplingSettings

FAST = vgt.FlowSettings(steps=6, solver="euler")


@cache
def tokenizer():
    return vgt.load(recorded.FIXTURES / "internvl3").tokenizer


def launches(flow, tokens_per_step=1):
    """Of one step late in a picture, InternVL3-1.6B, one image with guidance."""
    config = GeneratorConfig(LanguageModelConfig(1536, 28, 12, 2, 8960, 151674))
    counts = []
    with FakeCuda() as device:
        generator = Generator(config, "internvl3", device="cuda", dtype=torch.bfloat16)
        settings = SamplingSettings(28, 28 * 3 * tokens_per_step, tokens_per_step=tokens_per_step, flow=flow)
        generate(
            generator,
            tokenizer(),
            "a cat",
            settings=settings,
            device="cuda",
            graphs=False,
            progress=lambda _: counts.append(device.launches.copy()),
        )
    return counts[2] - counts[1]


@cache
def published_and_fast():
    """The same with 30 steps as published, and with FAST."""
    return launches(vgt.FlowSettings(steps=30)), launches(FAST)
