"""What ComfyUI Manager installs: the tracked files less .comfyignore, alone in a fresh host, or beside another copy."""

import json
import re
import shutil

import pytest

import comfy_host
from archive import NODES, git_files
from host import ROOT, Host

FOLDER = "vgt"  # where Manager puts it: the name in pyproject.toml


@pytest.fixture(scope="module")
def files():
    return git_files() - git_files("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_holds_what_is_needed_and_no_more(files):
    assert {name.split("/")[0] for name in files} - {"models"} == {
        *("__init__.py", "nodes", "vgt", "workflows", "web", "locales", "subgraphs", "pictures", "licenses"),
        *("pyproject.toml", "requirements.txt", "requirements-train.txt", "LICENSE", "README.md", "CHANGELOG.md"),
    }
    assert sum((ROOT / name).stat().st_size for name in files) < 60e6


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


def test_two_copies_do_no_harm_and_the_log_names_both(files, tmp_path):
    """The linked folder, as in every test, and one that Manager put beside it."""
    for name in files:
        target = tmp_path / "custom_nodes" / FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    with Host(tmp_path) as host:
        nodes = {name: node["python_module"] for name, node in host.object_info().items() if name.startswith("VGT")}
        assert set(nodes) == NODES
        assert len(set(nodes.values())) == 1  # all five of the same copy
        (line,) = re.findall("VGT is installed twice, in .*", host.log())
        assert f"{tmp_path / 'custom_nodes' / FOLDER} " in line.replace(":", " ")
        assert f"{tmp_path / 'custom_nodes' / 'ComfyUI-VGT'} " in line.replace(":", " ")
        assert line.endswith(": remove one of the two folders, then start ComfyUI again.")
        assert "Traceback" not in host.log()
        assert host.run(
            json.loads((ROOT / "workflows" / "api" / "VGT-1-text-to-image.json").read_text(encoding="utf-8"))
        )
