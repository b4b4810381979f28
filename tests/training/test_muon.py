"""Muon in float32: the same updates as PyTorch's, and chosen where bfloat16 is slow."""

import pytest
import torch

from vgt.training import muon
from vgt.training.optimiser import make_optimisers, told
from vgt.training.settings import Settings

if not hasattr(torch.optim, "Muon"):
    pytest.skip("PyTorch has Muon from 2.9 on", allow_module_level=True)


def trained(kind, steps=3, state=None):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((128, 256), (256, 128), (160, 160))]
    optimiser = kind(parameters, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    if state is not None:
        optimiser.load_state_dict(state)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        optimiser.step()
    return parameters, optimiser


def test_it_does_what_pytorchs_does():
    (ours, mine), (theirs, other) = trained(muon.Float32Muon), trained(torch.optim.Muon)
    start, _ = trained(torch.optim.Muon, steps=0)
    for one, same, first in zip(ours, theirs, start):
        moved = (same - first).norm()
        assert (one - same).norm() < 0.03 * moved  # their iteration is in bfloat16
    assert all(
        torch.equal(mine.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"]) for a, b in zip(ours, theirs)
    )
    goes_on, _ = trained(muon.Float32Muon, 1, other.state_dict())  # a run that began where bfloat16 is fast
    assert all(parameter.isfinite().all() for parameter in goes_on)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40)])
def test_singular_values_come_near_1(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(muon.orthogonalised(x, (3.4445, -4.775, 2.0315), 5, 1e-7))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("slow", [False, True])
def test_the_device_decides_and_it_is_said(slow, monkeypatch):
    monkeypatch.setattr(muon, "bfloat16_is_slow", lambda device: slow)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(128, 128)), torch.nn.Parameter(torch.zeros(8))], "scale": 1.0}]
    adamw, matrices = make_optimisers(groups, Settings(1, 1, 0.01, muon=True), set())
    assert type(matrices) is (muon.Float32Muon if slow else torch.optim.Muon)
    assert told([adamw, matrices]).startswith("optimisers: Muon for 1 matrices, orthogonalised in ")
    assert ("float32" in told([adamw, matrices])) == slow and told([adamw]) == "optimiser: AdamW"


def test_a_gpu_is_not_measured():
    assert muon.bfloat16_is_slow("cuda") is False
    assert muon.bfloat16_is_slow("cpu") in (False, True)
