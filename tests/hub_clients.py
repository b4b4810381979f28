"""Clients of a local hub. Each is a process: the hub's address is read at import."""

import json
import os
import subprocess
import sys
import textwrap

from host import ROOT
from hub_server import FIXTURES

SFT = "VGT-InternVL3-1.6B-SFT"
WEIGHTS = "hustvl/vgt_internvl3_1_6B_sft/iter_5000.pth"
SIZE = (FIXTURES / "internvl3" / "iter_5000.pth").stat().st_size
LOST = 2**16 + 2**14
"""Bytes that a broken connection may cost at the most: a chunk, and the piece on its way."""

CLIENT = """
import json, shutil, sys, threading, time
from pathlib import Path
from vgt.files import hub, transfer
transfer.BACKOFF = (0.05,) * 4
folder, seen, calls = Path("models"), [], []
def progress(*now): seen.append(now)
class Stop(Exception): pass
def convert(source, out):
    calls.append(sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()))
    weights = next(p for p in source.iterdir() if p.suffix == ".pth")
    out.write_bytes(weights.read_bytes())
def obtain(name, **more): return hub.obtain(name, folder, more.pop("convert", convert), progress, **more)
def result(**values): print("RESULT", json.dumps(values))
def error(call, *args, **more):
    try: call(*args, **more)
    except hub.HubError as error: result(error=type(error).__name__, message=str(error))
"""


class Clients:
    """Runs clients in a folder of its own, which holds their models/ and their hub cache."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url
        self.models = folder / "models"
        self.cache = folder / "hf" / "hub"

    def start(self, code, **env):
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
        }
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT + textwrap.dedent(code)],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": path, **hub, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-3000:]
        return json.loads(out.rpartition("RESULT ")[2])

    def run(self, code, **env):
        """What the client gave to `result`."""
        return self.finish(self.start(code, **env))


def left(folder):
    """Files below a folder, lock files aside."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
