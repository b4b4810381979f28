"""How many kernels a token launches, counted on a CUDA device that is not there."""

from functools import cache
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import recorded
import vgt
from fake_compiler import kernels
from fake_cuda import FakeCuda
from vgt.config import FlowHeadConfig, GeneratorConfig, LanguageModelConfig
from vgt.networks.flow_head import FlowHead
from vgt.networks.language_model import _Layer, run_layer
from vgt.run import compiled
from vgt.run.flow import flow_step
from vgt.run.generation import Generator, generate
from vgt.sampling import SamplingSettings

FAST = vgt.FlowSettings(steps=6, solver="euler")
LANGUAGE = LanguageModelConfig(1536, 28, 12, 2, 8960, 151674)


@cache
def tokenizer():
    return vgt.load(recorded.FIXTURES / "internvl3").tokenizer


def launches(flow, tokens_per_step=1, made=None):
    """Of one step late in a picture, InternVL3-1.6B, one image with guidance.

    made: by function, how many kernels it is when it is compiled; None: nothing is compiled.
    """
    counts = []

    def stand_in(function):
        def call(*arguments):
            before = device.launches.copy()
            result = function(*arguments)
            device.launches = before
            device.launches[function.__name__] += made[function]
            return result

        return call

    names = "flow.compiled", "token_step.compiled", "generation.check_compiler"
    patches = [mock.patch(f"vgt.run.{name}", with_) for name, with_ in zip(names, (stand_in, stand_in, lambda _: None))]
    with FakeCuda() as device, patches[0], patches[1], patches[2]:
        generator = Generator(GeneratorConfig(LANGUAGE), "internvl3", device="cuda", dtype=torch.bfloat16)
        steps = 3 if made is None else 6  # so that their size recurs
        settings = SamplingSettings(28, 28 * steps * tokens_per_step, tokens_per_step=tokens_per_step, flow=flow)
        generate(
            generator,
            tokenizer(),
            "a cat",
            settings=settings,
            device="cuda",
            graphs=False,
            compile=made is not None,
            progress=lambda _: counts.append(device.launches.copy()),
        )
    return counts[2] - counts[1]


def kernels_of_a_flow_step(rows=2) -> list[str]:
    """Of flow_step compiled, at the published size: half of the rows are unconditional."""
    config, empty = FlowHeadConfig(), torch.empty

    def make():
        there = {"device": "cuda", "dtype": torch.bfloat16}
        head = FlowHead(config, LANGUAGE.width, **there)
        numbers = [empty(shape, device="cuda") for shape in ((rows // 2, 32), (), (3,), (rows // 2, 32))]
        modulations = empty(rows, 3 * config.depth + 2, config.width, **there)

        def step(head, x, cfg, coefficients, noise, modulations):
            return flow_step(head, x, modulations, cfg, True, coefficients, noise)

        return _with_weights(head, step, [*numbers, modulations])

    with mock.patch("torch.compiler.is_compiling", lambda: True):
        return kernels(make, FakeTensorMode(allow_non_fake_inputs=True), compiled.OPTIONS)


def kernels_of_a_layer(slots=384) -> list[str]:
    """Of a layer of the language model compiled, for one token with guidance, the cache under a mask."""
    groups = LANGUAGE.heads // LANGUAGE.kv_heads

    def make():
        there = {"device": "cuda", "dtype": torch.bfloat16}
        kept = (2, LANGUAGE.kv_heads, slots, LANGUAGE.head_width)
        shapes = (2, 2, LANGUAGE.width), *[(2, 1, 2, LANGUAGE.head_width)] * 2, kept, kept, (2, 1, groups * 2, slots)
        given = [torch.empty(shape, **there) for shape in shapes]

        def layer(layer, x, cos, sin, keys, values, mask, slot):
            return run_layer(layer, x, cos, sin, (keys, values), slot, mask, None)

        slots_written = torch.zeros(2, dtype=torch.int64).to("cuda")
        return _with_weights(_Layer(LANGUAGE, nn, **there), layer, [*given, slots_written])

    def attend(q, k, v, attn_mask):  # the kernel that runs keep to; without a device PyTorch would choose another
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, False)[0]

    with mock.patch.object(F, "scaled_dot_product_attention", attend):
        return kernels(make, FakeTensorMode(allow_non_fake_inputs=True), compiled.OPTIONS)


def _with_weights(module, function, tensors):
    """The function of a module and tensors as one of tensors alone, and those."""

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *tensors):
            return function(self.module, *tensors)

    called = Called()
    names, weights = zip(*called.named_parameters())

    def of_tensors(*given):
        own = dict(zip(names, given[len(tensors) :], strict=True))
        return torch.func.functional_call(called, own, given[: len(tensors)])

    return of_tensors, [*tensors, *weights]
