"""The frontier: what is drawn, what is measured of it, and that it goes on where it was."""

import pytest
import torch

import recorded
import vgt
from vgt import FlowSettings, SamplingSettings
from vgt.evaluation import frontier
from vgt.sampling import PRESETS

SMALL = SamplingSettings(56, 56, cfg=2.0).filled()


@pytest.fixture(scope="module")
def model():
    return vgt.load(recorded.FIXTURES / recorded.FAMILIES[0])


@pytest.fixture
def few(monkeypatch):
    ways = {"published": frontier._flows("euler_maruyama", 2), "euler": frontier._flows("euler", 2)}
    monkeypatch.setattr(frontier, "WAYS", {**ways, "annealed": (), "distilled": ()})
    for name, value in (("DIFFERENT", 2), ("TIMED", 1), ("FINE", 3)):
        monkeypatch.setattr(frontier, name, value)


def test_all_is_measured_once_and_kept(model, few, tmp_path, monkeypatch):
    results = frontier.run(model, tmp_path, 6, SMALL, batch=6)
    assert len(results) == 2 * 6  # two decodings, three tokens a step
    first, euler = results[0], results[6]
    assert first["closeness"] is None and euler["closeness"] > 0
    assert first["evaluations"] == 2 and first["seconds"] > 0 and first["diversity"] > 0
    table = (tmp_path / "frontier.md").read_text(encoding="utf-8")
    assert table.count("\n") == 2 + len(results) and (tmp_path / "frontier.png").stat().st_size > 10_000

    monkeypatch.setattr(frontier, "measure", lambda *_: pytest.fail("drawn again"))
    assert frontier.run(model, tmp_path, 6, SMALL, batch=6) == results
    with pytest.raises(ValueError, match="another model, count or setting"):
        frontier.run(model, tmp_path, 7, SMALL, batch=6)


def test_a_distilled_head_is_drawn_where_there_is_one():
    without, beside = frontier.settings(SMALL, False), frontier.settings(SMALL, True)
    assert {name.split("-")[0] for name in beside.keys() - without.keys()} == {"distilled"}
    assert "distilled-1-published-1" in beside and "published-30-training-consistent-4" in without
    fast = without["annealed-9-2-training-consistent-4"]
    assert (fast.flow, fast.cfg_end, fast.tokens_per_step) == (PRESETS["fast"].flow, 0.5, 4)
    assert without["published-30-published-1"].cfg_end == 1


def test_evaluations_are_the_mean_over_a_pictures_tokens():
    one = SamplingSettings(112, 112, tokens_per_step=1, flow=FlowSettings(8, final_steps=4))
    assert frontier.evaluations(one, 28) == sum(one.flow.steps_at(index / 16) for index in range(16)) / 16


def test_alike_pictures_have_no_spread_and_the_flows_own_end_no_distance(model, few):
    assert frontier.spread(torch.ones(3, 3, 8, 8)) == pytest.approx(0, abs=1e-3)
    assert frontier.spread(torch.stack((torch.zeros(3, 8, 8), torch.ones(3, 8, 8)))) == pytest.approx(1)
    fine = SamplingSettings(56, 56, cfg=2.0, flow=FlowSettings(3, 1 / 3, "euler")).filled()
    assert frontier.closeness(model, fine) == 0
