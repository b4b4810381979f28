"""The distilled head: what is recorded, what is learnt, and the files it comes in."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import recorded
import vgt
from vgt.files.checkpoint import CheckpointError
from vgt.files.head_file import HEAD_KEY
from vgt.files.reading import convert, read_checkpoint
from vgt.files.single_file import save_checkpoint
from vgt.training.command import run_stage
from vgt.training.head import distance, energy_score, new_head, teacher_path
from vgt.training.head_command import run
from vgt.training.processes import together
from vgt.training.settings import TrainingError

TRAINING = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "warmup": 1, "save_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, and what `train head` made of it."""
    folder = tmp_path_factory.mktemp("head")
    convert(recorded.FIXTURES / recorded.FAMILIES[0], folder / "base.safetensors")
    run(configuration(folder), folder / "out", None)
    (folder / "out" / "head.safetensors").rename(folder / "head.safetensors")
    return folder


def configuration(folder, **training):
    return {
        "model": str(folder / "base.safetensors"),
        "data": {"kind": "scenes", "size": 56, "length": 100},
        "recording": {"runs": 2, "batch": 4, "kept": 8},
        "objective": {"draws": 3},
        "recommended": {"steps": 1},
        "training": TRAINING | training,
    }


def test_the_file_is_the_head_alone_and_says_whose_it_is(made):
    with safe_open(made / "head.safetensors", "pt") as file:
        about = json.loads(file.metadata()[HEAD_KEY])
        assert about["model"] == "base.safetensors" and len(about["weights"]) == 16
        assert not [name for name in file.keys() if "language" in name]  # noqa: SIM118 - no dict
    assert (made / "head.safetensors").stat().st_size < (made / "base.safetensors").stat().st_size / 2


def test_head_beside_its_model_and_the_whole_model_draw_the_same_and_as_recommended(made):
    beside, whole = vgt.load(made / "head.safetensors"), vgt.load(made / "out" / "model.safetensors")
    assert beside.recommended.flow == vgt.FlowSettings(1, solver="distilled")
    own = dict(height=56, width=56, seed=3)
    drawn = beside.generate("a red circle", **own)
    assert torch.equal(drawn, whole.generate("a red circle", **own))
    assert torch.equal(drawn, beside.generate("a red circle", **own, flow=vgt.FlowSettings(1, solver="distilled")))
    plain = vgt.load(made / "base.safetensors")
    published = beside.generate("a red circle", **own, flow=vgt.FlowSettings(2))
    assert torch.equal(published, plain.generate("a red circle", **own, flow=vgt.FlowSettings(2)))


@pytest.mark.parametrize("more", [{"cfg": 1.0}, {"tokens_per_step": 2}, {"cfg_end": 0.5}, {"cfg": 30.0}])
def test_a_distilled_head_draws_in_every_kind_of_run(made, more):
    model = vgt.load(made / "head.safetensors")
    record = vgt.RunRecord()
    drawn = model.generate(["a red circle", "a star"], height=56, width=56, record=record, **more)
    assert torch.isfinite(drawn).all() and torch.isfinite(record.spread).all()


def test_without_its_model_or_beside_another_it_is_refused_by_name(made, tmp_path):
    head = tmp_path / "head.safetensors"
    head.write_bytes((made / "head.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"head.safetensors .*for base.safetensors.*put base.safetensors"):
        vgt.load(head)
    other = read_checkpoint(made / "base.safetensors")
    other.tensors["generator.image_out_projector.bias"] = other.tensors["generator.image_out_projector.bias"] + 1
    save_checkpoint(other, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match=r"head.safetensors .*other weights than base.safetensors"):
        vgt.load(head)


@pytest.mark.parametrize("wrong", ["no json", "{}", '{"config": {"width": -1}}', "[]"])
def test_a_head_file_that_says_nonsense_is_refused(made, tmp_path, wrong):
    save_file(load_file(made / "head.safetensors"), tmp_path / "head.safetensors", {HEAD_KEY: wrong})
    with pytest.raises(CheckpointError, match=r"head.safetensors holds a vgt.head"):
        vgt.load(tmp_path / "head.safetensors")


def test_a_run_that_is_broken_off_goes_on_as_if_it_had_not_been(made, tmp_path):
    config = configuration(made) | {"conditions": str(made / "out" / "conditions")}
    run(config, tmp_path, 2)
    assert not (tmp_path / "head.safetensors").exists()
    run(config, tmp_path, None)
    once, twice = load_file(made / "head.safetensors"), load_file(tmp_path / "head.safetensors")
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_what_is_missing_of_the_conditions_is_recorded_again_alike(made, tmp_path):
    config = configuration(made) | {"conditions": str(tmp_path)}
    run(config, tmp_path / "out", 1)
    file = tmp_path / "000001.safetensors"
    before = load_file(file)
    file.unlink()
    run(config, tmp_path / "out", 1)
    after = load_file(file)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before["condition"].shape == before["free"].shape and before["cfg"].shape == (8,)
    config["recording"]["batch"] = 2
    with pytest.raises(TrainingError, match="conditions of other batch"):
        run(config, tmp_path / "out", 1)


def test_two_processes_record_a_part_each_and_learn_together(made, tmp_path):
    """What one process records, and one head file that draws."""
    assert together(2, "cpu", run_stage, "head", configuration(made), tmp_path / "two", None) == 0
    files = sorted((made / "out" / "conditions").iterdir())
    assert len(files) == 2
    for file in files:
        torch.testing.assert_close(load_file(file), load_file(tmp_path / "two" / "conditions" / file.name))
    losses = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == [1, 2, 3, 4]
    head = load_file(tmp_path / "two" / "head.safetensors")
    assert head.keys() == load_file(made / "head.safetensors").keys()
    assert all(torch.isfinite(tensor).all() for tensor in head.values())


def test_a_new_head_moves_as_the_flow_head_does_without_guidance(made):
    model = vgt.load(made / "base.safetensors").generator
    head = new_head(model.flow_head, model.config.flow_head, model.config.language.width, 0)
    x, condition = torch.randn(5, 32), torch.randn(5, model.config.language.width)
    t = torch.full((5,), 0.5)
    torch.testing.assert_close(
        head(x, t, t + 0.25, condition, condition, torch.tensor(3.0)), model.flow_head(x, t, condition)
    )


def test_the_teachers_path_is_the_flow_under_guidance(made):
    head = vgt.load(made / "base.safetensors").generator.flow_head
    width = head.cond_embed.in_features
    condition, free, noise = torch.randn(4, width), torch.randn(4, width), torch.randn(4, 32)
    cfg = torch.tensor([1.0, 2.0, 4.0, 8.0])
    path = teacher_path(head, condition, free, cfg, noise)
    assert path.shape == (5, 4, 32) and torch.equal(path[0], noise)
    unguided = teacher_path(head, condition, torch.zeros_like(free), torch.ones(4), noise)
    torch.testing.assert_close(path[:, 0], unguided[:, 0], atol=1e-5, rtol=0)


def test_the_energy_score_is_least_where_samples_are_distributed_alike():
    rng = torch.Generator().manual_seed(0)
    true, alike = torch.randn(6, 500, 32, generator=rng), torch.randn(6, 500, 32, generator=rng)
    least = energy_score(alike, true)
    for other in (alike * 0.5, alike * 1.5, alike + 0.5, torch.zeros_like(alike)):
        assert energy_score(other, true) > least + 0.01
    assert distance(true, true).max() < 2e-3
