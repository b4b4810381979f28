"""The house is as CONTRIBUTING.md says: its folders are told, and imports go one way."""

import ast

from archive import git_files
from host import ROOT


def imported(name):
    """The modules that a file of the pack imports, as dotted names from the root: vgt.files.hub."""
    here = name.split("/")[:-1]
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def python_files(folder):
    return sorted(name for name in git_files() if name.startswith(folder) and name.endswith(".py"))


def test_contributing_names_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.partition("## Where things are")[2].partition("##")[0]
    folders = {parts[0] for name in git_files() if len(parts := name.split("/")) > 1 and not name.startswith(".")}
    folders |= {parts[1] for name in git_files() if len(parts := name.split("/")) > 2 and parts[0] in ("vgt", "nodes")}
    assert [folder for folder in sorted(folders) if f"{folder}/" not in tree] == []


def test_the_model_knows_nothing_of_the_host():
    for name in python_files("vgt/"):
        roots = {module.partition(".")[0] for module in imported(name)}
        assert not roots & {"comfy", "comfy_api", "nodes", "folder_paths", "server"}, name


def test_nothing_in_the_model_uses_training_and_evaluation_nor_these_each_other():
    for name in python_files("vgt/"):
        part = name.split("/")[1]
        if part == "__main__.py":  # the command line
            continue
        others = {module.split(".")[1] for module in imported(name) if module.startswith("vgt.")}
        assert not (others & {"training", "evaluation"}) - {part}, name


def test_only_the_host_folder_imports_the_models_of_the_host():
    for name in python_files("nodes/"):
        roots = {module.partition(".")[0] for module in imported(name)}
        if not name.startswith("nodes/host/"):
            assert "comfy" not in roots, name
