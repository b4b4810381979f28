"""Flags by which people fit the host to their card. (--lowvram, --novram and --gpu-only go with no --cpu.)"""

import pytest
import torch

from graphs import INTERN, draw, install_models, node, run_latent, save_image
from host import Host


@pytest.mark.host
def test_draws_the_same_under_flags(host, models, tmp_path):
    flags = ["--cpu-vae", "--fp32-vae", "--cache-none", "--reserve-vram", "1"]
    graph = draw(INTERN, seed=8)
    with Host(tmp_path / "other", flags) as other:
        install_models(other)
        assert torch.equal(run_latent(other, graph), run_latent(host, graph))
        decode = node("VAEDecode", samples=["draw", 0], vae=["load", 1])
        assert other.run(save_image({**graph, "decode": decode}, "decode"))["image"]["images"]
