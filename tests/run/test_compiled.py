"""The flow head compiled for the CPU, where there is a C++ compiler."""

import re

import pytest
import torch

import recorded
import vgt
from launches import published_and_fast
from vgt.run import compiled, flow

SMALL = {"height": 112, "width": 112, "cfg": 3.0, "seed": 2, "flow": vgt.FlowSettings(steps=3)}


def has_compiler():
    try:
        compiled.check_compiler(torch.device("cpu"))
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not has_compiler(), reason="there is nothing to compile with")
def test_compiled_draws_the_same_with_fewer_launches(monkeypatch):
    """How many launches: of what the compiler made for the CPU, a fused kernel and a product count as one each; the
    rest of a token is counted as it is in test_fake_cuda. (On CUDA the compiler cuts alike but need not.)
    """
    from torch._inductor.utils import run_and_get_code

    model = vgt.load(recorded.FIXTURES / "internvl3")
    latent, codes = run_and_get_code(model.generate, "a red circle", **SMALL, compile=True)
    eager = model.generate("a red circle", **SMALL)
    assert (latent - eager).abs().max() < 1e-5
    assert len(codes) == 1  # for one shape

    call = codes[0][codes[0].index("def call") :]
    made = len(re.findall(r"cpp_fused\w*\(|extern_kernels\.\w*mm\(", call))
    depth, published = model.config.generator.flow_head.depth, 12
    assert made <= 4 * depth + 5
    a_step = made + 4 * (published - depth)
    slow, fast = (counted.total() for counted in published_and_fast())
    eager_step = (slow - fast) / 24
    advance = 3
    total = slow - 30 * (eager_step - a_step - advance)
    print(f"kernels a flow step: {eager_step:.0f} eager, {a_step + advance} compiled; a token {slow}, {total:.0f}")
    assert total < 2200


def test_says_in_a_sentence_what_is_missing(monkeypatch):
    model = vgt.load(recorded.FIXTURES / "internvl3")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"takes the C.. compiler no-such-compiler, which is not there"):
        model.generate("a red circle", **SMALL, compile=True)


def test_a_compiler_that_fails_ends_the_run_in_a_sentence(monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.TorchDynamoException("no Python.h\nand more")

    monkeypatch.setattr(compiled, "_compile", lambda _: fails)
    with pytest.raises(RuntimeError, match=r"could not be compiled \(no Python.h\); draw without it"):
        flow.compiled(flow.guided_velocity)()
