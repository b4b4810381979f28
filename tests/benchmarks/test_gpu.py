"""What waits for a GPU runs on a CPU in a small form, to its end."""

import os
import subprocess
import sys

import pytest
import torch

from host import ROOT, comfyui_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the whole of it runs, by hand")
@pytest.mark.host
def test_the_small_form_runs_to_its_end_and_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--folder", str(tmp_path)]
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui_path())}
    parts = ["tests", "agreement", "allocator", "two models", "ways", "1.6B, batch 1", "host, 8 GB"]
    done = subprocess.run([*command, *parts], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        "graphs against eager",
        "cudaMallocAsync, float32",
        "1 a step, fast",
        "card of 8 GB, bf16",
        "compiled in graphs",
    ):
        assert text in done.stdout
    again = subprocess.run([*command, *parts], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "…" not in again.stdout
    table = done.stdout[done.stdout.index("| case") :]
    assert again.stdout.endswith(table.partition("\n")[2].splitlines()[-1] + "\n")


def test_an_unknown_part_is_named():
    command = [sys.executable, "-m", "benchmarks.gpu", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no part nothing" in done.stderr
