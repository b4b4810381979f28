"""A step compiled for the CPU, where there is a C++ compiler, and counted as it would be for a GPU."""

import pytest
import torch

import recorded
import vgt
from launches import kernels_of_a_flow_step, kernels_of_a_layer, launches
from vgt.networks import few_rows
from vgt.networks.language_model import run_layer
from vgt.run import compiled, flow

SMALL = {"height": 112, "width": 112, "cfg": 3.0, "seed": 2, "flow": vgt.FlowSettings(steps=3)}


def has_compiler():
    try:
        compiled.check_compiler(torch.device("cpu"))
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not has_compiler(), reason="there is nothing to compile with")
@pytest.mark.parametrize("few", [False, True], ids=["products", "sums for few rows"])
def test_compiled_draws_the_same(monkeypatch, caplog, few):
    """Both ways to write the flow head; all layers of the language model share what is compiled for one."""
    torch._dynamo.reset()
    compiled.compiled.cache_clear()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(few_rows, "DEVICES", ("cpu",) if few else ())
    model = vgt.load(recorded.FIXTURES / "internvl3")
    settings = SMALL | {"flow": vgt.FlowSettings(steps=3, solver="exact" if few else "euler_maruyama")}
    latent = model.generate("a red circle", **settings, compile=True)
    eager = model.generate("a red circle", **settings)
    assert 0 < (latent - eager).abs().max() < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not [record for record in caplog.records if record.name == "root"]  # ours


def test_launches_a_token_compiled():
    """As PyTorch's compiler schedules it for an H100, which nobody has: see fake_compiler."""
    step, layer = kernels_of_a_flow_step(), kernels_of_a_layer()
    assert not any("extern" in name for name in step)
    made = {flow.flow_step: len(step), run_layer: len(layer)}
    slow = launches(vgt.FlowSettings(steps=30), made=made)
    print(f"kernels: {len(step)} a flow step, {len(layer)} a layer; a token {slow.total()}")
    assert slow["flow_step"] == 30 * len(step)
    assert slow["run_layer"] == 28 * len(layer)
    assert slow.total() <= 1200


def test_what_differs_is_not_used(monkeypatch, caplog):
    """A compiler may be wrong, too: its first result for a shape is compared."""

    def double(x):
        return 2 * x

    calls = []

    def wrong(x):
        calls.append(x)
        return 2.2 * x

    monkeypatch.setattr(compiled, "_compile", lambda _: wrong)
    call = compiled.compiled(double)
    for size in (3, 3, 5):
        assert torch.equal(call(torch.ones(size)), 2 * torch.ones(size))
    assert len(calls) == 2  # once for each shape
    assert [record.getMessage() for record in caplog.records] == [
        "VGT: a compiled step differs from the plain one; drawing without it."
    ] * 2
    monkeypatch.setattr(compiled, "_compile", lambda _: lambda x: calls.append(x) or x + x)
    compiled.compiled.cache_clear()
    right = compiled.compiled(double)
    assert [right(torch.ones(3)).sum() for _ in range(2)] == [6, 6]
    assert len(calls) == 4


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
        flow.compiled(flow.flow_step)()
