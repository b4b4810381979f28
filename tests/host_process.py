"""A process with the host's modules and the pack, but no server: it runs a script and says what it found."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from host import ROOT, comfyui_path

BEGIN = """
import sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import json
import comfy.model_management as memory, comfy.model_patcher, comfy.ops, torch
from pack import vgt
from pack.nodes.host import loading, patcher
from pack.nodes.host.operations import Operations
from pack.vgt.config import GeneratorConfig, LanguageModelConfig
from pack.vgt.run.generation import Generator, generate
from pack.vgt.sampling import SamplingSettings
FLOW = vgt.FlowSettings(steps=30)
FIXTURE = ROOT + "/tests/fixtures/internvl3"
"""


SERVE = """
import os, sys, traceback

for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(job["folder"])
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        status = 1
        try:
            exec(job["script"], globals())
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=said, flush=True)
"""
"""After BEGIN: each script runs in a copy of the process, so that none finds what another has changed."""


def run(tmp_path, *parts, **names):
    """What a script prints last, as JSON; names are what it finds beside ROOT.

    One that starts with BEGIN is spared the seconds that the imports take.
    """
    given = "".join(f"{name} = {value!r}\n" for name, value in {"ROOT": str(ROOT), **names}.items())
    script = "".join(parts)
    if script.startswith(BEGIN) and hasattr(os, "fork"):
        status, out, err = _in_a_copy(tmp_path, given + script.removeprefix(BEGIN))
    else:
        done = subprocess.run(
            [sys.executable, "-c", given + script],
            env=_environment(_folder()),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        status, out, err = done.returncode, done.stdout, done.stderr
    assert status == 0, err
    return json.loads(out.splitlines()[-1])


def _in_a_copy(folder, script):
    """Exit status, output and errors of a script."""
    process = _ready()
    process.stdin.write(json.dumps({"folder": str(folder), "script": script}) + "\n")
    process.stdin.flush()
    said = process.stdout.readline().split()
    assert said, "the process with the host's modules ended"
    return int(said[1]), *((folder / name).read_text(encoding="utf-8") for name in ("out", "err"))


@functools.cache
def _ready():
    """The process that has done BEGIN."""
    own = "import os, sys\nsaid = os.fdopen(os.dup(1), 'w')\nos.dup2(2, 1)\n"  # the host's modules print too
    process = subprocess.Popen(
        [sys.executable, "-c", f"ROOT = {str(ROOT)!r}\n{own}{BEGIN}{SERVE}"],
        env=_environment(_folder()),
        cwd=_folder(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    return process


@functools.cache
def _folder():
    """A folder that holds this pack under an importable name."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    (Path(folder.name) / "pack").symlink_to(ROOT)
    return folder.name


def _environment(folder):
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{comfyui_path()}"}
