"""The linear layer that is fast for a few inputs gives what torch's does."""

import pytest
import torch
from torch import nn

from vgt.networks.linear import Linear


def pair(inputs, outputs, bias=True):
    own = Linear(inputs, outputs, bias=bias)
    plain = nn.Linear(inputs, outputs, bias=bias)
    plain.load_state_dict(own.state_dict())
    return own, plain


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 1024), (1, 2, 1024), (2, 1, 1024), (3, 1024)])
def test_large_matrices_give_what_torch_does(shape, bias):
    own, plain = pair(1024, 1024, bias)
    x = torch.randn(shape)
    with torch.no_grad():
        found = own(x)
    assert found.is_contiguous() and found.shape == (*shape[:-1], 1024)
    torch.testing.assert_close(found, plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1024), (6, 2, 1024), (129, 1024)])
def test_tall_matrices_are_multiplied_in_parts_with_the_same_result(shape):
    own, plain = pair(1024, 2**14 + 300)
    x = torch.randn(shape)
    with torch.no_grad():
        found, wanted = own(x), plain(x)
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_small_matrices_other_dtypes_and_training_are_torchs_own():
    small, plain = pair(256, 256)
    x = torch.randn(2, 256)
    with torch.no_grad():
        assert torch.equal(small(x), plain(x))
    own, plain = pair(1024, 1024)
    x = torch.randn(2, 1024)
    own(x).sum().backward()
    plain(x).sum().backward()
    assert torch.equal(own.weight.grad, plain.weight.grad)
    with torch.no_grad():
        half = x.bfloat16()
        assert torch.equal(own.bfloat16()(half), plain.bfloat16()(half))
