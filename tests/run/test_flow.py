"""Solvers against a flow that is known in closed form: data that is a mixture of Gaussians, in every channel alike."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import recorded
import vgt
from vgt import FlowSettings
from vgt.networks.distilled_head import DistilledHead
from vgt.networks.flow_head import FlowHead
from vgt.run.control import Change
from vgt.run.flow import SOLVERS, FlowSampler, advance

MEANS, WEIGHTS, SPREAD = torch.tensor([-1.5, 0.5]), torch.tensor([0.3, 0.7]), 0.4
MEAN = float((WEIGHTS * MEANS).sum())
VARIANCE = float((WEIGHTS * MEANS**2).sum()) + SPREAD**2 - MEAN**2
SMALL = {"height": 112, "width": 112, "cfg": 3.0}


class Known(FlowHead):
    """The velocity E[x1 - x0 | x] at a time, in place of a network's."""

    def __init__(self, means=MEANS, weights=WEIGHTS, spread=SPREAD):
        nn.Module.__init__(self)
        self.means, self.log_weights, self.spread = means, weights.log(), spread

    def cond_embed(self, condition):
        return condition[:, :1] * 0

    def embed_time(self, t, dtype):
        return t[:, None]

    def modulations(self, time, condition):
        return time + condition

    def velocity(self, x, modulations):
        t = modulations[..., :1, None]
        variance = (t * self.spread) ** 2 + (1 - t) ** 2
        off = x[..., None] - t * self.means
        share = (self.log_weights - off**2 / (2 * variance)).softmax(-1)
        return (share * (self.means + (t * self.spread**2 - (1 - t)) / variance * off)).sum(-1)


class KnownJump(DistilledHead):
    """Where the flow of one Gaussian leads: x_t = t·mean + sqrt((t·spread)² + (1 - t)²)·x_0."""

    def __init__(self):
        nn.Module.__init__(self)

    def embed_jump(self, t, u, dtype):
        return torch.stack((t, u), dim=-1)

    def embed_guided(self, condition, free, cfg):
        return condition[:, :1] * 0

    def modulations(self, time, condition):
        return time + condition

    def velocity(self, x, modulations):
        t, u = modulations[:, :1], modulations[:, 1:]
        width_t, width_u = (((s * SPREAD) ** 2 + (1 - s) ** 2).sqrt() for s in (t, u))
        return (u * 1.5 + (x - t * 1.5) * width_u / width_t - x) / (u - t)


def noise_of(count, steps, seed=0):
    return torch.randn(count, steps, 32, generator=torch.Generator().manual_seed(seed))


def drawn(settings, noise, head=None):
    sampler = FlowSampler(head or Known(), settings, "cpu", torch.float32)
    return sampler(torch.zeros(len(noise), 4), noise, 1.0)


@pytest.mark.parametrize("solver", ["euler_maruyama", "exact", "euler"])
def test_with_many_steps_the_latents_are_distributed_as_the_data(solver):
    x = drawn(FlowSettings(1000, 0.001, solver), noise_of(400, 1000))
    assert x.mean() == pytest.approx(MEAN, abs=0.04)
    assert x.var() == pytest.approx(VARIANCE, rel=0.04)
    near = ((x[..., None] - MEANS).abs() < 3 * SPREAD).float()
    assert near[..., 0].mean() == pytest.approx(0.3, abs=0.04)


def test_the_deterministic_flow_nears_the_reference_with_its_steps():
    noise = noise_of(100, 1)
    noise = torch.cat((noise, torch.zeros(100, 999, 32)), dim=1)
    reference = drawn(FlowSettings(1000, 0.001, "euler"), noise)
    errors = [
        (drawn(FlowSettings(steps, 1 / steps, "euler"), noise) - reference).square().mean().sqrt().item()
        for steps in (5, 10, 20, 40)
    ]
    assert errors[0] < 0.35 and errors[-1] < 0.05
    assert all(after < 0.75 * before for before, after in pairwise(errors))


@pytest.mark.parametrize("begin, end", [(0.0, 0.25), (0.0, 0.9), (0.3, 0.8), (0.6, 0.65)])
def test_the_exact_step_leaves_the_right_noise_at_any_size_and_eulers_too_much(begin, end):
    """With one point, 0.7, as data its prediction is right at every time: what is left to see is the step itself."""
    noise = noise_of(4000, 3)
    left = {}
    for solver in ("exact", "euler_maruyama"):
        settings = FlowSettings(3, solver=solver)
        coefficients = settings.coefficients([begin, end, 0.99], [end - begin, 0.99 - end, 0.01])
        x = begin * 0.7 + (1 - begin) * noise[:, 0]
        x = advance(x, (0.7 - x) / (1 - begin), noise, 0, coefficients[0])
        assert x.mean() == pytest.approx(end * 0.7, abs=0.01)
        left[solver] = float(x.var()) / (1 - end) ** 2
    assert left["exact"] == pytest.approx(1, abs=0.02)
    assert left["euler_maruyama"] > 1 + (end - begin) / (1 - begin) * 0.02
    assert end - begin < 0.5 or left["euler_maruyama"] > 2


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "distilled"])
def test_one_step_goes_all_the_way(solver):
    """At t = 0 the prediction is the mean, whatever the noise."""
    x = drawn(FlowSettings(1, solver=solver), noise_of(10, 1))
    torch.testing.assert_close(x, torch.full_like(x, MEAN), atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_distilled_head_arrives_where_the_flow_does(steps):
    noise = noise_of(50, steps)
    x = drawn(FlowSettings(steps, solver="distilled"), noise, KnownJump())
    torch.testing.assert_close(x, 1.5 + SPREAD * noise[:, 0], atol=1e-4, rtol=0)
    one = Known(torch.tensor([1.5]), torch.ones(1))
    followed = drawn(FlowSettings(1000, 0.001, "euler"), torch.cat((noise[:, :1], noise_of(50, 999)), 1), one)
    assert (x - followed).abs().max() < 0.02


def test_a_solver_takes_the_head_that_is_its_own():
    for solver, head in (("distilled", Known()), ("euler", KnownJump())):
        with pytest.raises(ValueError, match="not for this head"):
            FlowSampler(head, FlowSettings(2, solver=solver), "cpu", torch.float32)


@pytest.mark.parametrize("solver", ["euler_maruyama", "exact", "euler"])
def test_fewer_steps_take_the_first_of_the_noise(solver):
    settings = FlowSettings(5, solver=solver, final_steps=3)
    noise = noise_of(4, 5)
    sampler = FlowSampler(Known(), settings, "cpu", torch.float32, counts=(5, 3))
    few = sampler(torch.zeros(4, 4), noise, 1.0, steps=3)
    assert torch.equal(few, drawn(FlowSettings(3, solver=solver), noise[:, :3]))


def test_the_published_grid_and_a_shifted_one():
    times, spans = FlowSettings(5, 0.04).grid(5)
    assert times == torch.linspace(0, 0.96, 5).tolist() and spans[-1] == 0.04
    for shift in (0.5, 3.0):
        times, spans = FlowSettings(5, 0.04, shift=shift).grid(5)
        assert times[0] == 0 and math.isclose(times[-1] + spans[-1], 1) and all(span > 0 for span in spans)
        assert (times[2] < 0.48) == (shift > 1)


def test_steps_fall_evenly_while_the_picture_fills_up():
    settings = FlowSettings(30, final_steps=10)
    assert [settings.steps_at(share / 4) for share in range(5)] == [30, 25, 20, 15, 10]
    assert FlowSettings(30).steps_at(0.9) == 30


@pytest.mark.parametrize(
    "wrong", [{"final_steps": 0}, {"final_steps": 31}, {"shift": 0.0}, {"shift": math.nan}, {"solver": "heun"}]
)
def test_a_value_that_cannot_be_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is "):
        FlowSettings(**wrong)


@pytest.fixture(params=recorded.FAMILIES)
def model(request):
    return vgt.load(recorded.FIXTURES / request.param)


def test_annealing_changes_late_tokens_alone(model):
    whole = model.generate("a red circle", **SMALL, order="sequential", flow=FlowSettings(4))
    falling = model.generate("a red circle", **SMALL, order="sequential", flow=FlowSettings(4, final_steps=1))
    same = (whole == falling).all(dim=1).flatten().tolist()
    assert same == [True] * 3 + [False] * 13  # round(4 - 3 * 3 / 16) is 3


@pytest.mark.parametrize("decoding", ["published", "training-consistent"])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_without_guidance_its_rows_are_not_fed(model, decoding, tokens_per_step):
    """A scale next to 1 computes them all and gives the same."""
    fed = []
    model.generator.language_model.register_forward_pre_hook(lambda _, inputs: fed.append(len(inputs[0])))
    settings = SMALL | {"decoding": decoding, "tokens_per_step": tokens_per_step, "flow": FlowSettings(3)}
    prompts, negative = ["a red circle", "a star"], "many blue hearts on a white background"
    ended = model.generate(prompts, negative, **settings, cfg_end=0.5)
    steps = len(fed)
    assert fed[0] == 4 and fed[-1] == 2 and fed == sorted(fed, reverse=True)
    changed = model.generate(prompts, negative, **settings, changes=[Change(0.5, cfg=1 + 1e-6)])
    assert fed[steps:] == [4] * steps
    torch.testing.assert_close(ended, changed, atol=1e-4, rtol=0)


def test_a_model_without_a_distilled_head_says_so(model):
    with pytest.raises(ValueError, match="no distilled flow head"):
        model.generate("a red circle", **SMALL, flow=FlowSettings(1, solver="distilled"))
