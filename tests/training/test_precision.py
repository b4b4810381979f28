"""Training computes in bfloat16 where the processor has units for it, in float32 where not, and says so."""

import pytest
import torch

from miniatures import captioner, losses
from vgt.training import captioner_command, optimiser, precision
from vgt.training.optimiser import make_optimisers, told
from vgt.training.settings import Settings


@pytest.fixture(params=[False, True])
def slow(request, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_is_slow", lambda device: request.param)
    monkeypatch.setattr(optimiser, "bfloat16_is_slow", lambda device: request.param)
    return request.param


def test_the_processor_decides_and_it_is_said(slow):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(128, 128)), torch.nn.Parameter(torch.zeros(8))], "scale": 1.0}]
    settings = Settings(1, 1, 0.01, muon=True, dtype="bfloat16")
    adamw, matrices = make_optimisers(groups, settings, set())
    expected = torch.float32 if slow else torch.bfloat16
    assert matrices.dtype == precision.product_dtype(settings) == expected
    said = "float32 (bfloat16 is slow here)" if slow else "bfloat16"
    assert told([adamw, matrices], settings) == (
        f"optimisers: Muon for 1 matrices, orthogonalised in {said}; AdamW for the rest; products in {said}"
    )
    assert told([adamw], settings) == f"optimiser: AdamW; products in {said}"


def test_float32_stays_float32(slow):
    settings = Settings(1, 1, 0.01, dtype="float32")
    assert precision.product_dtype(settings) == torch.float32
    optimisers = make_optimisers([{"params": [torch.nn.Parameter(torch.zeros(8))], "scale": 1.0}], settings, set())
    assert told(optimisers, settings) == "optimiser: AdamW; products in float32"


def test_a_gpu_is_not_measured():
    assert precision.bfloat16_is_slow("cuda") is False
    assert precision.bfloat16_is_slow("cpu") in (False, True)


def test_a_run_goes_on_on_another_machine(tmp_path, monkeypatch, capsys):
    """One without units for bfloat16, where the first half was computed with them."""
    config = captioner(steps=4, dtype="bfloat16")
    for slow, until, said in ((False, 2, "products in bfloat16"), (True, None, "products in float32")):
        monkeypatch.setattr(precision, "bfloat16_is_slow", lambda device, slow=slow: slow)
        captioner_command.run(config, tmp_path, until)
        assert said in capsys.readouterr().out
    assert len(losses(tmp_path)) == 4 and torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
