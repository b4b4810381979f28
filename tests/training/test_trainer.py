"""The training loop: several processes, stopping, going on, and losses that are not finite."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from host import ROOT
from miniatures import captioner, losses, toml
from vgt.training import captioner_command
from vgt.training.command import read_config
from vgt.training.settings import TrainingError


def test_two_processes_train_together_and_stop_at_ctrl_c(tmp_path):
    """torchrun, as a person would start it; each draws its own share of a batch, and both the same gradient."""
    (tmp_path / "two.toml").write_text("\n".join(toml(captioner(steps=100_000, log_every=1))))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vgt"]
    command = [sys.executable, *launcher, "train", "captioner", "two.toml", "--out", "two"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    metrics = tmp_path / "two" / "metrics.jsonl"
    while run.poll() is None and not (metrics.is_file() and len(losses(tmp_path / "two")) > 2):
        time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)  # as the terminal does: to torchrun and to both
    assert run.wait(600) != 0
    kept = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    assert kept["step"] == len(losses(tmp_path / "two"))
    with pytest.raises(TrainingError, match=r"another configuration \(processes was 2, is 1\)"):
        captioner_command.run(read_config(tmp_path / "two.toml"), tmp_path / "two", None)


def test_resume_from_another_configuration_is_refused(tmp_path):
    captioner_command.run(captioner(steps=4), tmp_path, 1)
    with pytest.raises(TrainingError, match=r"another configuration \(training.learning_rate was 0.003, is 0.01\)"):
        captioner_command.run(captioner(steps=4, learning_rate=0.01), tmp_path, None)
    captioner_command.run(captioner(steps=4, log_every=3), tmp_path, 2)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    from vgt.training import captioner_stage

    real, calls = captioner_stage.caption_loss, []

    def spoilt(*arguments):
        calls.append(1)
        return real(*arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(captioner_stage, "caption_loss", spoilt)
    with pytest.raises(TrainingError, match=r"became nan in step 5; the checkpoint of step 3 is kept"):
        captioner_command.run(captioner(), tmp_path, None)
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert kept["step"] == 3
    assert all(tensor.isfinite().all() for tensor in kept["stage"].values())


def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path, monkeypatch):
    from vgt.training.captioner_stage import CaptionerStage

    def spoil(self, step):
        if step == 2:  # where the checkpoint of step 3 would be made
            weight = self.trained.language_model.norm.weight
            weight.register_hook(lambda gradient: gradient * float("inf"))

    monkeypatch.setattr(CaptionerStage, "begin_step", spoil)
    with pytest.raises(TrainingError, match=r"The gradient became (inf|nan) in step 3; there is no checkpoint yet"):
        captioner_command.run(captioner(), tmp_path, None)
    assert not (tmp_path / "last.pt").exists()


def test_ctrl_c_writes_a_checkpoint(tmp_path, monkeypatch):
    from vgt.training.captioner_stage import CaptionerStage

    def interrupt(self, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CaptionerStage, "begin_step", interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        captioner_command.run(captioner(), tmp_path, None)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2


def test_a_review_that_ctrl_c_cut_off_is_made_up_for(tmp_path, monkeypatch):
    from vgt.training.captioner_stage import CaptionerStage

    def interrupt(self, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    config = captioner(steps=4, sheet_every=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="stopped after step 2"):
        patch.setattr(CaptionerStage, "begin_step", interrupt)
        captioner_command.run(config, tmp_path, None)
    metrics = tmp_path / "metrics.jsonl"
    assert "held_out" not in metrics.read_text()
    with metrics.open("a") as file:
        file.write('{"step": 3, "loss": 9.0}\n{"step": 4, "lo')  # as a crash after the checkpoint leaves it
    for _ in range(2):
        captioner_command.run(config, tmp_path, None)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert [(line["step"], "loss" in line) for line in lines] == [
            (1, True), (2, True), (2, False), (3, True), (4, True), (4, False),
        ]  # fmt: skip
    assert (tmp_path / "captions-000002.tsv").is_file()
