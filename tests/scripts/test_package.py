"""`pip install .`: the wheel holds vgt and nothing else, and draws in an environment without this checkout."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

import bundled
from archive import git_files
from host import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools would put in what an earlier build left in build/."""
    folder = tmp_path_factory.mktemp("package")
    for name in git_files("--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file() and name.split("/")[0] not in ("models", "tests", "web", "workflows"):
            target = folder / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, folder / "checkout", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An environment with the wheel in it, on top of the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    own, scripts = (Path(sysconfig.get_path(name, "venv", {"base": str(folder), "platbase": str(folder)}))
                    for name in ("purelib", "scripts"))  # fmt: skip
    python = scripts / Path(sys.executable).name
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=folder)
    installed = {path.name for path in own.iterdir()}
    assert installed == {"vgt", next(name for name in installed if name.endswith(".dist-info"))}
    (own / "under.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_vgt_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"vgt"}
    ours = {name for name in git_files("--cached", "--others", "--exclude-standard") if name.startswith("vgt/")}
    assert {name for name in names if name.startswith("vgt/")} == {name for name in ours if (ROOT / name).is_file()}


def test_what_is_installed_draws(python, tmp_path):
    where = run(python, "-c", "import vgt; print(vgt.__file__)", cwd=tmp_path)
    assert str(python.parents[1]) in where
    run(
        *(python, "-m", "vgt", "generate", bundled.PATH),
        *("a red circle", "picture.png", "--steps", "2", "--device", "cpu"),
        cwd=tmp_path,
    )
    assert Image.open(tmp_path / "picture.png").size == (bundled.SIDE, bundled.SIDE)


def test_what_the_extra_for_training_names_is_not_needed_to_draw(python, tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    absent = [Requirement(line).name.replace("-", "_") for line in (*extras["train"], *extras["transformers"])]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import vgt.__main__ as cli; cli.main()"
    command = ("generate", bundled.PATH, "a red circle", "picture.png", "--steps", "1", "--device", "cpu")
    run(python, "-c", code, *command, cwd=tmp_path)
    assert (tmp_path / "picture.png").is_file()


def test_the_console_script_is_the_same_command(python, tmp_path):
    script = python.with_name("vgt").with_suffix(python.suffix if python.suffix == ".exe" else "")
    assert "reconstruct" in run(script, "--help", cwd=tmp_path)


def test_the_extras_name_what_the_requirements_do():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == []  # Manager installs into hosts
    lines = (ROOT / "requirements-train.txt").read_text(encoding="utf-8").splitlines()
    listed = {str(Requirement(line)) for line in lines if not line.startswith("#")}
    assert listed <= {str(Requirement(line)) for line in project["optional-dependencies"]["train"]}
