"""A process with the host's modules and the pack, but no server: it runs a script and says what it found."""

import json
import os
import subprocess
import sys

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


def run(tmp_path, *parts, **names):
    """What a script prints last, as JSON; names are what it finds beside ROOT."""
    (tmp_path / "pack").symlink_to(ROOT)
    given = "".join(f"{name} = {value!r}\n" for name, value in {"ROOT": str(ROOT), **names}.items())
    done = subprocess.run(
        [sys.executable, "-c", given + "".join(parts)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{comfyui_path()}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
