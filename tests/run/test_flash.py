"""Published decoding with flash-attn, whose function a stand-in of the same signature computes in plain PyTorch."""

import sys
import types

import pytest
import torch

import recorded
import vgt
from launches import launches
from vgt.networks import attention
from vgt.run import graphs as cuda_graphs
from vgt.run import token_step

SMALL = {"height": 112, "width": 112, "cfg": 3.0, "seed": 2, "flow": vgt.FlowSettings(steps=2)}
CALLS = []


def flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=None, causal=False):
    """q [B, m, heads, d], caches [B, slots, kv_heads, d], cache_seqlens int32 [B]: the last m of so many slots are the
    queries' own."""
    assert cache_seqlens.dtype == torch.int32 and cache_seqlens.shape == (len(q),) and causal
    assert q.stride(-1) == k_cache.stride(-1) == v_cache.stride(-1) == 1
    CALLS.append(tuple(q.shape))
    if q.is_cuda:
        return torch.empty_like(q)
    m, heads, width = q.shape[1:]
    k, v = (part.repeat_interleave(heads // part.shape[2], dim=2).transpose(1, 2) for part in (k_cache, v_cache))
    own = cache_seqlens[:, None] - m + torch.arange(m)
    hidden = torch.arange(k.shape[2]) > own[:, :, None]
    scores = (q.transpose(1, 2) @ k.transpose(2, 3) * width**-0.5).masked_fill(hidden[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.fixture
def flash(monkeypatch):
    stand_in = types.ModuleType("flash_attn")
    stand_in.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in)
    attention._imported.cache_clear()
    CALLS.clear()
    yield monkeypatch
    attention._imported.cache_clear()


@pytest.mark.parametrize("tokens_per_step", [1, 3])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("family", recorded.FAMILIES)
def test_draws_what_the_plain_kernels_draw(flash, family, graphs, tokens_per_step):
    model = vgt.load(recorded.FIXTURES / family)
    prompts = ["a red circle", "two blue stars on a white background"]
    plain = model.generate(prompts, **SMALL, tokens_per_step=tokens_per_step)
    assert not CALLS
    flash.setattr(token_step, "decodes_with_flash", lambda *_: True)
    if graphs:  # stood in for as in test_graphs
        flash.setattr(cuda_graphs, "capture", lambda work, *_: work() or work)
        flash.setattr(cuda_graphs, "_lies_on_cuda", lambda *_: True)
        flash.setattr(cuda_graphs, "new_pool", lambda: (0, 1))
    latent = model.generate(prompts, **SMALL, tokens_per_step=tokens_per_step)
    assert (latent - plain).abs().max() < 1e-5
    assert CALLS
    CALLS.clear()
    model.generate(prompts, **SMALL, decoding="training-consistent")
    assert not CALLS  # whose masks it does not have


def test_on_a_device(flash):
    """No mixing of devices or dtypes there, and no mask is made."""
    flash.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))  # too old for it
    plain = launches(vgt.FlowSettings(steps=2), 3)
    flash.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    with_flash = launches(vgt.FlowSettings(steps=2), 3)
    assert plain["attention"] == 28 and not with_flash["attention"]
    assert len(CALLS) == 28 * 2  # both steps after the first
    assert with_flash.total() < plain.total()
