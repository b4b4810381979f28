"""Every command and code block of the documentation: run where it is quick, else read by its own parser."""

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from unittest.mock import patch

import pytest

from host import ROOT
from vgt.__main__ import _parser

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "vgt/training/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "web" / "docs").rglob("*.md")),
]
RUN = ("generate", "reconstruct")
"""Commands of vgt that are run; the others train or score for minutes to hours."""
STAND_INS = {
    "FOLDER": "folder",
    "MODEL": "model.safetensors",
    "NAME": "inpaint",
    "STAGE": "captioner",
    "SOURCE": "a",
    "TARGET": "b",
}


def blocks(page):
    """Code blocks of a page: indented by four, or fenced, as (language, text)."""
    text = page.read_text(encoding="utf-8")
    fenced = [(language, body) for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)]
    text = re.sub(r"^```.*?^```\n", "", text, flags=re.M | re.S)
    indented = re.findall(r"(?:(?<=\n\n)|\A)((?:    [^\n]*\n|\n(?=    ))+)", text)
    return fenced + [("", re.sub(r"^    ", "", body, flags=re.M)) for body in indented]


def commands(page):
    """Command lines of a page, in order: of its blocks, with variables filled in, and between backquotes."""
    found, variables = [], {}
    for language, body in blocks(page):
        for line in body.splitlines() if language in ("", "sh", "bash") else ():
            if setting := re.fullmatch(r'(\w+)="(.*)"', line.strip()):
                variables[setting[1]] = setting[2]
                continue
            line = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line)
            found.append(line)
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    found += re.findall(r"(?<!`)`((?:python3? (?:-m|scripts)|\.venv/bin/python |vgt \w|torchrun )[^`]*)`", text)
    kept = [re.sub(r"\s+#.*", "", line).strip() for line in found]
    starts = ("python", ".venv/bin/python", "vgt ", "torchrun", "pip ", "git ", "cd ", "comfy ")
    return [line for line in dict.fromkeys(kept) if line.startswith(starts)]


ALL = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


def of_vgt(words):
    """What stands behind `vgt`, None for another command."""
    if words[0] == "vgt":
        return words[1:]
    return words[words.index("vgt") + 1 :] if "vgt" in words and words[words.index("vgt") - 1] == "-m" else None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, bundled_model):
    """A folder with the model where the documentation has it."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "models").mkdir()
    (folder / "models" / bundled_model.name).symlink_to(bundled_model)
    return folder


def run(arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def help_of_script(name):
    return run([ROOT / name, "--help"], ROOT)


@cache
def help_of_module(name):
    """What `python -m NAME --help` prints; here, since each new process would import PyTorch."""
    with (
        patch.object(sys, "argv", [name, "--help"]),
        redirect_stdout(io.StringIO()) as printed,
        pytest.raises(SystemExit, match="0"),
    ):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    return printed.getvalue()


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}: {line}" for page, line in ALL])
def test_command(page, line, checkout):
    words = [STAND_INS.get(word, word) for word in shlex.split(line.replace("…", "")) if word not in ("[NAME", "...]")]
    program = words[0]
    if program in ("git", "cd", "comfy"):
        if "clone" in words:  # the address is the project's own
            assert f'"{words[-1]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        return
    if program == "pip":
        (target,) = words[2:]
        extra = re.fullmatch(r"\.\[(\w+)\]", target)[1]
        assert (
            extra
            in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        )
        return
    if (arguments := of_vgt(words)) is not None:
        if len(arguments) < 3 or "…" in line:  # a command's name alone
            assert not arguments or arguments[0] in ("generate", "reconstruct", "convert", "train", "evaluate"), line
        elif arguments[0] in RUN and (checkout / arguments[1]).exists():
            run(["-m", "vgt", *arguments, "--force"], checkout)
        else:
            for word in (word for word in arguments if word.startswith("configs/")):
                assert (ROOT / "vgt" / "training" / word).is_file(), word
            _parser().parse_known_args(arguments)
        return
    script = next((word for word in words[1:] if word.endswith(".py")), None)
    if script is not None:
        assert "usage" in help_of_script(script)
        return
    module = words[words.index("-m") + 1]
    if module != "pytest":
        assert "usage" in help_of_module(module)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code(page, checkout):
    """Python is run as it stands; tables of a configuration can be read."""
    for language, body in blocks(page):
        if language == "python":
            run(["-c", body], checkout)
        elif re.search(r"^\[\w+\]", body, re.M):
            tomllib.loads(body)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#][^)]*)\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not page.is_relative_to(ROOT / "web"):
            assert (page.parent / target.partition("#")[0]).exists(), target
