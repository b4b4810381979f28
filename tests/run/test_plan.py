"""A run's plan: orders, groups, positions, cache slots, what is seen."""

import pytest
import torch

import recorded
from vgt.run.order import draw_order
from vgt.run.plan import group_sizes, make_plan, visible


def plan(order, tokens_per_step, lengths=(5, 3), start=1, **options):
    return make_plan(order, tokens_per_step, lengths=lengths, start=start, **options)


@pytest.mark.parametrize("family, case", list(recorded.cases()))
def test_recorded_schedule(family, case):
    tokens = case["height"] * case["width"] // 28**2
    order = draw_order(1, tokens, case["order"], case["order_seed"])
    assert plan(order, case["parallel"]).groups == case["schedule"]


def test_group_sizes_fill_the_image():
    for tokens in (1, 2, 7, 15, 16, 64, 256):
        for per_step in (1, 2, 3, 4, 16, 100, 4096):
            uniform, cosine = group_sizes(tokens, per_step), group_sizes(tokens, per_step, "cosine")
            assert sum(uniform) == sum(cosine) == tokens
            assert len(uniform) == len(cosine) == max(1, tokens // per_step)
            assert min(uniform + cosine) >= 1
            assert max(uniform) - min(uniform) <= 1
    assert group_sizes(64, 8, "cosine") == sorted(group_sizes(64, 8, "cosine"))
    assert group_sizes(64, 8, "cosine") != group_sizes(64, 8)


def test_published_single_token_step():
    steps = plan([2, 0, 1], 1).steps
    assert [(s.kinds, s.places, s.slot) for s in steps] == [("q", (2,), 0), ("lq", (2, 0), 7), ("lq", (0, 1), 9)]
    assert [s.positions for s in steps] == [(1,), (2, 3), (4, 5)]
    assert all(s.relative for s in steps)


def test_published_parallel_step_repeats_the_queries():
    steps = plan([3, 1, 0, 2], 2).steps
    assert [(s.kinds, s.places, s.slot) for s in steps] == [("qq", (3, 1), 0), ("qlqlqq", (3, 3, 1, 1, 0, 2), 8)]


def test_published_positions_may_count_from_the_padded_text():
    built = plan([3, 1, 0, 2], 1, start=2, counts_padding=True)
    # step j: padded text + j · inputs of the step; the two `<img>` tokens are not counted
    assert built.positions()[:, 8:].tolist() == [[5 + n for n in range(2, 8)]] * 2


def test_text_positions_run_on_row_by_row():
    positions = plan([0, 1], 1, lengths=(5, 3), start=1).positions()
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 2, 2, 3, 4, 5, 6]]


def seen_by(plan, index):
    """What step `index` of a plan may see: bool [rows or 1, inputs, slots up to its last]; None: all but the future."""
    step, end = plan.steps[index], plan.steps[index].slot + plan.inputs(index)
    queries = len(step.group) if plan.isolated else 0
    if not plan.hides_padding(index) and queries < 2:
        return None
    lengths = torch.tensor(plan.lengths) if plan.hides_padding(index) else None
    return visible(torch.arange(step.slot, end), end, lengths, queries)


def test_published_padding_is_hidden_in_the_first_step_only():
    built = plan([0, 1], 1)
    seen = seen_by(built, 0)
    assert seen.shape == (2, 7, 7)
    assert seen[0].equal(torch.ones(7, 7, dtype=torch.bool).tril())
    assert seen[1, 6].tolist() == [True, True, True, False, False, True, True]
    assert seen_by(built, 1) is None


def test_consistent_plan_commits_the_sequence_of_training():
    built = plan([4, 2, 0, 1], 2, decoding="training-consistent")
    first, second = built.steps
    assert (first.kinds, first.slot, first.positions) == ("qq", 0, (1, 1))
    # the first query of a group stays where it is; the latent follows it, over the slot of the second query
    assert (second.kinds, second.places, second.slot) == ("lqlqq", (4, 2, 2, 0, 1), 7)
    assert second.positions == (2, 3, 4, 5, 5)
    seen = seen_by(built, 1)[1]
    assert seen[3].tolist() == [True] * 3 + [False] * 2 + [True] * 5 + [True, False]
    assert seen[4].tolist() == [True] * 3 + [False] * 2 + [True] * 5 + [False, True]


def test_known_tokens_are_fed_first():
    for decoding in ("published", "training-consistent"):
        first = plan([0, 1], 1, known=[3, 2], decoding=decoding).steps[0]
        assert (first.kinds, first.places, first.positions) == ("qlqlq", (3, 3, 2, 2, 0), (1, 2, 3, 4, 5))


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_no_step_sees_a_slot_that_was_never_written(decoding, tokens_per_step):
    built = plan(draw_order(3, 3, "random", 1), tokens_per_step, decoding=decoding)
    written = 0
    for index, step in enumerate(built.steps):
        assert step.slot <= written
        written = step.slot + built.inputs(index)
        assert written <= built.slots
        visible = seen_by(built, index)
        assert visible is None or visible.shape[-1] == written


def test_one_token_a_step_without_padding_both_decodings_are_one():
    order = draw_order(4, 4, "random", 3)
    consistent = plan(order, 1, lengths=(4, 4), decoding="training-consistent")
    assert plan(order, 1, lengths=(4, 4)).steps == consistent.steps
    assert all(seen_by(consistent, index) is None for index in range(16))


@pytest.mark.parametrize(
    "options, message",
    [({"order": "zigzag"}, "order"), ({"tokens_per_step": 0}, "tokens_per_step"), ({"grouping": "odd"}, "grouping")],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        if "order" in options:
            draw_order(2, 2, options["order"], 0)
        else:
            group_sizes(4, options.get("tokens_per_step", 1), options.get("grouping", "uniform"))
