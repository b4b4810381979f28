"""Sampling settings: what is open, what fills it, and their plain form."""

import argparse

import pytest

from vgt import FlowSettings, SamplingSettings
from vgt.arguments import add_settings, read_settings
from vgt.sampling import PRESETS, PUBLISHED, default_side

OWN = SamplingSettings(112, 112, cfg=3.0, flow=FlowSettings(steps=6))


def test_what_is_open_is_the_models_then_the_published():
    chosen = SamplingSettings(cfg=2.0, seed=7).filled(OWN)
    assert (chosen.cfg, chosen.seed, chosen.height, chosen.flow.steps) == (2.0, 7, 112, 6)
    assert (chosen.order, chosen.decoding, chosen.tokens_per_step) == ("random", "published", 1)
    assert SamplingSettings().filled() == PUBLISHED


def test_a_seed_of_zero_is_not_open():
    assert SamplingSettings(seed=0).filled(SamplingSettings(seed=5)).seed == 0


def test_plain_form_and_back():
    assert SamplingSettings.from_dict(OWN.to_dict()) == OWN
    assert SamplingSettings.from_dict({}) == SamplingSettings() and SamplingSettings().to_dict() == {}
    assert SamplingSettings.from_dict({"steps": 6, "a later version's": 1}).flow == FlowSettings(steps=6)


@pytest.mark.parametrize("wrong", [{"order": "up"}, {"cfg_schedule": "no"}, {"tokens_per_step": 0}])
def test_a_value_that_cannot_be_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is "):
        SamplingSettings(**wrong)


def test_a_picture_without_a_size_is_the_published_one_or_the_most_the_model_draws():
    assert [default_side(28, 64), default_side(28, 4), default_side(32, 64)] == [448, 112, 448]


def parsed(*words, own=None):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return read_settings(parser.parse_args(words), own or SamplingSettings())


def test_options_win_over_the_preset_and_the_preset_over_the_model():
    own = SamplingSettings(112, 112, cfg=3.0, cfg_end=0.7, flow=FlowSettings(2, solver="distilled"))
    assert parsed(own=own).flow == own.flow
    fast = parsed("--preset", "fast", own=own)
    assert (fast.flow, fast.cfg_end, fast.cfg, fast.height) == (PRESETS["fast"].flow, 0.5, 3.0, 112)
    assert parsed("--preset", "fast", "--cfg-end", "1", "--temperature", "0.5").flow.temperature == 0.5
    assert parsed("--preset", "published", own=own).flow == FlowSettings()


def test_other_steps_or_another_solver_do_not_fall_to_what_was_meant_for_the_models():
    own = SamplingSettings(flow=FlowSettings(6, solver="euler", final_steps=2))
    assert parsed("--steps", "1", own=own).flow == FlowSettings(1, solver="euler")
    assert parsed("--steps", "9", "--final-steps", "3", own=own).flow == FlowSettings(9, solver="euler", final_steps=3)
    assert parsed("--solver", "euler_maruyama", own=own).flow == FlowSettings()
    with pytest.raises(ValueError, match="final_steps is 2"):
        parsed("--steps", "1", "--final-steps", "2", own=own)
