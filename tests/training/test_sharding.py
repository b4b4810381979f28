"""A generator shared out over two processes (gloo) learns as it does when one holds all of it."""

import json

import pytest

from sharded import OfTwo, learn
from vgt.training.generator import GeneratorStage
from vgt.training.processes import together


def logged(folder, name):
    """The steps with that figure, and the figures."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_shared_out_it_has_the_loss_curve_of_one_process(tmp_path):
    """Also with gradient checkpointing, and gone on from in the middle."""
    one, two = tmp_path / "one", tmp_path / "two"
    learn(one, OfTwo, False)
    assert together(2, "cpu", learn, two, GeneratorStage, True, 3) == 0
    for name, steps, apart in (("loss", [1, 2, 3, 4, 5, 6], 2e-5), ("held_out_drawn", [3, 6], 1e-4)):
        wanted, found = logged(one, name), logged(two, name)
        assert [step for step, _ in found] == [step for step, _ in wanted] == steps
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], abs=apart)
