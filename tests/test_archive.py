"""What ComfyUI Manager installs: the tracked files less .comfyignore, alone in a fresh host."""

import shutil
import subprocess

import pytest

import comfy_host
from host import ROOT, Host

FOLDER = "vgt"  # where Manager puts it: the name in pyproject.toml
NODES = {"VGTLoader", "VGTEncode", "VGTDecode", "VGTARSampler", "VGTFlowHeadSettings"}


def git_files(*options):
    """Files that git tracks and that these options of `git ls-files` choose."""
    command = ["git", "ls-files", "-z", *options]
    try:
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    return set(output.split("\0")[:-1])


@pytest.fixture(scope="module")
def files():
    return git_files() - git_files("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_holds_what_is_needed_and_no_more(files):
    assert {name.split("/")[0] for name in files} - {"models"} == {
        *("__init__.py", "nodes", "vgt", "workflows", "web", "locales"),
        *("pyproject.toml", "requirements.txt", "requirements-train.txt", "LICENSE", "README.md", "CHANGELOG.md"),
    }
    assert sum((ROOT / name).stat().st_size for name in files) < 30e6


def test_works_alone_in_a_fresh_host(files, tmp_path, monkeypatch):
    for name in files:
        target = tmp_path / "custom_nodes" / FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    monkeypatch.setattr(comfy_host, "make_base", lambda base: None)  # which would link the whole repository
    with Host(tmp_path) as host:
        nodes = {name: node["python_module"] for name, node in host.object_info().items() if name.startswith("VGT")}
        assert nodes == dict.fromkeys(NODES, f"custom_nodes.{FOLDER}")
        assert host.get("/workflow_templates")[FOLDER]
        assert set(host.get("/i18n")["zh"]["nodeDefs"]) >= NODES
        assert "Traceback" not in host.log()
