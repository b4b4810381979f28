"""Muon: PyTorch's updates, shared between processes."""

from functools import partial

import pytest
import torch

import muon_share
from vgt.training import muon
from vgt.training.processes import together

beside_theirs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")


def theirs_of(parameters, **settings):
    return torch.optim.Muon(parameters, adjust_lr_fn="match_rms_adamw", **settings)


def trained(kind, steps=3, state=None):
    parameters, optimiser = muon_share.begun(kind)
    if state is not None:
        optimiser.load_state_dict(state)
    muon_share.learn(parameters, optimiser, steps)
    return parameters, optimiser


@beside_theirs
def test_it_does_what_pytorchs_does():
    (ours, mine), (theirs, other) = trained(muon.Muon), trained(theirs_of)
    assert all(torch.equal(one, same) for one, same in zip(ours, theirs))
    assert all(
        torch.equal(mine.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"]) for a, b in zip(ours, theirs)
    )


@beside_theirs
def test_float32_differs_by_rounding_only_and_goes_on_from_either():
    (ours, _), (theirs, other) = trained(partial(muon.Muon, dtype=torch.float32)), trained(theirs_of)
    start, _ = trained(theirs_of, steps=0)
    for one, same, first in zip(ours, theirs, start):
        moved = (same - first).norm()
        assert (one - same).norm() < 0.03 * moved
    goes_on, _ = trained(partial(muon.Muon, dtype=torch.float32), 1, other.state_dict())
    assert all(parameter.isfinite().all() for parameter in goes_on)


def test_a_convolution_is_a_matrix():
    kernel = torch.nn.Parameter(torch.randn(64, 32, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(kernel.shape)
    matrix.grad = kernel.grad.flatten(1)
    for parameter in (kernel, matrix):
        muon.Muon([parameter], torch.float32, lr=0.02, weight_decay=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_processes_share_the_work_and_get_the_same(tmp_path):
    assert together(2, "cpu", muon_share.work, tmp_path) == 0
    alone, _ = trained(muon.Muon)
    shared = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for found in shared:
        assert all(torch.equal(one, same) for one, same in zip(alone, found["parameters"]))
    done = [found["orthogonalised"] for found in shared]
    assert sum(done) == 3 * len(alone) and min(done) > 0


def test_shares_are_even():
    owners = muon.shares([5, 1, 4, 2, 2, 2], 2)
    assert sorted(sum(cost for cost, own in zip([5, 1, 4, 2, 2, 2], owners) if own == n) for n in range(2)) == [8, 8]


@pytest.mark.parametrize("shape", [(40, 320), (320, 40), (32, 64)])
def test_the_way_by_the_gram_matrix_gives_the_same(shape, monkeypatch):
    """Of matrices as gradients are: a few directions hold nearly all."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    x = left @ (values * torch.logspace(0, -5, len(values))).diag() @ right
    ours = muon.orthogonalised(x, (3.4445, -4.775, 2.0315), 5, 1e-7)
    monkeypatch.setattr(muon, "_LONG", 1000)
    step_by_step = muon.orthogonalised(x, (3.4445, -4.775, 2.0315), 5, 1e-7)
    assert (ours - step_by_step).norm() < 1e-3 * step_by_step.norm()


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (40, 90), (90, 40)])
def test_singular_values_come_near_1(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(muon.orthogonalised(x, (3.4445, -4.775, 2.0315), 5, 1e-7))
    assert values.min() > 0.6 and values.max() < 1.3
