"""A whole model by one command: all stages in processes of their own, stopped by Ctrl-C, and gone on with."""

import signal

import pytest
import torch

import interrupted
import miniatures
from vgt.__main__ import main
from vgt.training import processes, recipes
from vgt.training.command import STAGES, read_config
from vgt.training.recipes import CONFIGS, RECIPES, run_all
from vgt.training.settings import TrainingError


@pytest.fixture
def ctrl_c():
    """Ctrl-C works, even where the tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A miniature of a recipe: a captioner, then a tokenizer."""
    tokenizer = {**miniatures.autoencoder(tmp_path, steps=2), "base": "mini-captioner/base"}
    configs = {"captioner": miniatures.captioner(steps=4), "autoencoder-1": tokenizer}
    (tmp_path / "configs").mkdir()
    for name, config in configs.items():
        lines = "\n".join(miniatures.toml(config)) + "\n"
        (tmp_path / "configs" / f"mini-{name}.toml").write_text(lines)
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path / "configs")
    monkeypatch.setitem(RECIPES, "mini", tuple(configs))
    return tmp_path


def test_two_processes_train_one_stage_after_the_other_and_stop_at_ctrl_c(recipe, ctrl_c, capfd, monkeypatch):
    out = recipe / "out"
    captioner = out / "mini-captioner"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipes, "_stage", interrupted.stage)  # Ctrl-C for this process alone, which hands it on
        run_all("mini", out, 2)
    kept = torch.load(captioner / "last.pt", weights_only=True)
    assert kept["step"] == len(miniatures.losses(captioner)) == 2
    assert "stopped after step 2" in capfd.readouterr().err

    run_all("mini", out, 2)
    assert len(miniatures.losses(captioner)) == 4
    assert (out / "mini-autoencoder-1" / "autoencoder.safetensors").is_file()
    with pytest.raises(TrainingError, match="mini-captioner ended with status 1; run the same command"):
        run_all("mini", out, 1)
    assert "processes was 2, is 1" in capfd.readouterr().err


def test_workers_draw_the_pictures_of_every_stage_that_names_none(recipe, monkeypatch):
    given = []
    monkeypatch.setattr(processes, "together", lambda count, device, work, part, config, *_: given.append(config) or 0)
    run_all("mini", recipe / "out", 1, workers=3)
    assert [config["training"]["workers"] for config in given] == [3, 3]


def test_fewer_than_no_workers_are_refused(tmp_path, capsys):
    assert main(["train", "drawings", str(tmp_path), "--workers", "-1"]) == 1
    assert "--workers is -1; it must be 0 or more." in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["tiny", "drawings"])
def test_every_stage_of_a_recipe_is_a_command_and_reads_what_the_one_before_it_wrote(recipe):
    assert recipe in RECIPES
    done = set()
    for part in RECIPES[recipe]:
        assert part.partition("-")[0] in STAGES
        config = read_config(CONFIGS / f"{recipe}-{part}.toml")
        inputs = [config[name] for name in ("base", "init", "autoencoder", "model") if name in config]
        assert {name.partition("/")[0] for name in inputs} <= done
        done.add(f"{recipe}-{part}")
