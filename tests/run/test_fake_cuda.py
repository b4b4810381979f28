"""Every path on a CUDA device in bf16, without one: no mixing of devices, no clash of dtypes, no number read inside a
token; and how many kernels a token launches.
"""

import pytest
import torch

import recorded
import vgt
from fake_cuda import FakeCuda
from launches import FAST, launches, tokenizer
from vgt.config import GeneratorConfig, LanguageModelConfig
from vgt.networks.autoencoder import Autoencoder
from vgt.run.generation import Generator, generate
from vgt.sampling import SamplingSettings


def test_launches_a_token():
    """Without graphs. (A kernel each for attention and for RMSNorm, as PyTorch has them on CUDA.)"""
    published, fast = launches(vgt.FlowSettings(steps=30)), launches(FAST)
    print("launches a token:", published.total(), "published,", fast.total(), "fast")
    print(published.most_common())
    assert published.total() < 3000
    assert fast.total() <= 1000


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
def test_repainting_the_largest_picture_takes_little_memory(decoding):
    """1792x1792 with one token unknown, InternVL3-1.6B in bf16: every tensor's bytes, weights left out.

    Each layer takes as much as another: its 28 are reckoned from 2 and 4.
    """
    two, four = (repainting(decoding, depth) for depth in (2, 4))
    peak = two + 13 * (four - two)
    print(f"{decoding}: {peak / 1e9:.2f} GB")
    assert 0.3e9 < peak < 1.5e9


def repainting(decoding, depth):
    """Bytes at the peak."""
    config = GeneratorConfig(LanguageModelConfig(1536, depth, 12, 2, 8960, 151674))
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20, 30] = True
    with FakeCuda() as device:
        generator = Generator(config, "internvl3", device="cuda", dtype=torch.bfloat16)
        settings = SamplingSettings(1792, 1792, decoding=decoding, flow=FAST)
        device.track()
        given = {"latent": torch.ones(1, 32, 64, 64), "mask": mask, "device": "cuda", "graphs": False}
        generate(generator, tokenizer(), "a cat", settings=settings, **given)
    return device.peak


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
@pytest.mark.parametrize("family", recorded.FAMILIES)
@pytest.mark.parametrize("kind", ["draw", "repaint"])
def test_drawing(family, decoding, tokens_per_step, kind):
    model = vgt.load(recorded.FIXTURES / family)
    given = {}
    if kind == "repaint":
        mask = torch.ones(4, 4, dtype=torch.bool)
        mask[1, :3] = False
        given = {"latent": torch.linspace(-1, 1, 512).view(1, 32, 4, 4).repeat(2, 1, 1, 1), "mask": mask}
    with FakeCuda():
        generator = Generator(model.config.generator, family, device="cuda", dtype=torch.bfloat16)
        settings = SamplingSettings(
            112, 112, cfg=3.0, tokens_per_step=tokens_per_step, decoding=decoding, flow=vgt.FlowSettings(steps=3)
        )
        latent = generate(
            generator, model.tokenizer, ["a cat", "two dogs"], settings=settings, device="cuda", graphs=False, **given
        )
        assert latent.device.type == "cuda"
        assert latent.dtype == torch.float32
        assert latent.shape == (2, 32, 4, 4)


@pytest.mark.parametrize("family", recorded.FAMILIES)
def test_encoding_and_decoding(family):
    model = vgt.load(recorded.FIXTURES / family)
    with FakeCuda():
        autoencoder = Autoencoder(model.config.autoencoder, device="cuda", dtype=torch.bfloat16)
        latent = autoencoder.encode(torch.rand(2, 3, 84, 112).to("cuda", torch.bfloat16))
        assert (latent.shape, latent.dtype, latent.device.type) == ((2, 32, 3, 4), torch.float32, "cuda")
        picture = autoencoder.decode(latent.to(torch.bfloat16))
        assert (picture.shape, picture.device.type) == ((2, 3, 84, 112), "cuda")


def test_what_would_go_wrong_is_seen():
    with FakeCuda():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        with pytest.raises(Exception, match="device"):
            here + there
        with pytest.raises(Exception, match="local_scalar_dense"):
            there.sum().item()
        with pytest.raises(Exception, match="dtype"):
            torch.ones(2, 3, device="cuda") @ torch.ones(3, 2, device="cuda", dtype=torch.bfloat16)
