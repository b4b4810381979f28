"""What waits for a GPU runs on a CPU in a small form, to its end."""

import pytest
import torch

from benchmarks import gpu, gpu_parts
from host import comfyui_path

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there the whole of it runs, by hand")


def test_a_part_is_a_process_and_what_is_done_is_not_done_again(tmp_path, capsys):
    assert gpu.run(tmp_path, ["allocator"]) == []
    done = capsys.readouterr().out
    assert done.startswith("allocator …")
    for text in ("cudaMallocAsync, float32: graphs against eager 0.0e+00", "cudaMallocAsync, bfloat16"):
        assert text in done
    assert gpu.run(tmp_path, ["allocator"]) == []
    again = capsys.readouterr().out
    assert "…" not in again
    assert again.splitlines()[-2:] == done.splitlines()[-2:]


def test_a_part_that_fails_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "LIMIT", 0.1)
    assert gpu.run(tmp_path, ["agreement"]) == ["agreement"]
    assert "agreement failed: it was not done within 0.1 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "part, told",
    [
        ("tests", "Tests that need CUDA: 4 skipped"),
        ("two models", "Two models in turn draw the same pictures"),
        ("ways", "compiled in graphs"),
        ("1.6B, batch 1", "1 a step, fast"),
        pytest.param("host, 8 GB", "card of 8 GB, bf16", marks=pytest.mark.host),
    ],
)
def test_the_small_form_of_a_part_runs_to_its_end(part, told, monkeypatch):
    monkeypatch.setattr(gpu_parts, "ROOT_COMFYUI", comfyui_path())
    with gpu.small_form():
        rows = list(gpu.PARTS[part]())
    assert any(told in row.note + row.case for row in rows)
    assert all(min(row.seconds.values()) > 0 for row in rows if row.seconds)


def test_an_unknown_part_is_named(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu.py", "nothing"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "there is no part nothing" in capsys.readouterr().err
