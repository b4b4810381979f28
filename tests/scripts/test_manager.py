"""ComfyUI Manager (its command line, of the package comfyui-manager) installs this pack from a git repository, updates
it and takes it away again; the interface's buttons do the same through the same functions.

No network but this machine's own: the lists that Manager looks up are out of reach, the repository is not.
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading

import pytest

import comfy_host
import dev_setup
from archive import NODES, git_files
from host import ROOT, Host, comfyui_path

NAME = "ComfyUI-VGT"
KEPT = {"custom_nodes", "input", "models", "output", "temp", "user"}  # of the ComfyUI at hand, which may hold anything
DEAD = "http://127.0.0.1:9"


def git(folder, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Repository:
    """A git repository with this pack in it, served over HTTP."""

    def __init__(self, folder):
        self.work, self.bare = folder / "work", folder / "served" / f"{NAME}.git"
        for name in git_files():
            target = self.work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        git(self.work, "init", "--initial-branch", "main")
        self.commit()
        git(folder, "clone", "--bare", str(self.work), str(self.bare))
        git(self.bare, "update-server-info")
        handler = functools.partial(Quiet, directory=self.bare.parent)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/{NAME}.git"

    def commit(self):
        git(self.work, "add", "--all")
        git(self.work, "commit", "--message", "the pack")

    def publish(self):
        """Commit what has changed in `work` and serve it."""
        self.commit()
        git(self.work, "push", str(self.bare), "main")
        git(self.bare, "update-server-info")


class Manager:
    """A ComfyUI of its own with Manager's command line."""

    def __init__(self, folder):
        self.comfyui = folder / "ComfyUI"
        source = comfyui_path()
        skip = KEPT | {".git", "__pycache__"}
        leave = lambda place, names: skip & set(names) if place == str(source) else {"__pycache__"} & set(names)  # noqa: E731
        shutil.copytree(source, self.comfyui, ignore=leave)
        for name in KEPT:
            (self.comfyui / name).mkdir()
        # Manager would look for uv's idea of the environment, which is not the one that the host runs in.
        settings = self.comfyui / "user" / "__manager" / "config.ini"
        settings.parent.mkdir()
        settings.write_text("[default]\nuse_uv = False\n")

    def __call__(self, *arguments):
        """Run a command; returns what it printed."""
        proxies = {name: DEAD for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        local = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(
            [dev_setup.MANAGER_PYTHON, "-m", "cm_cli", *arguments],
            cwd=self.comfyui,
            env={**os.environ, **proxies, **local, "COMFYUI_PATH": str(self.comfyui)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    def files(self):
        """The files in the ComfyUI folder but for Manager's notes in user/, Python's and the log."""
        paths = (path.relative_to(self.comfyui) for path in self.comfyui.rglob("*") if path.is_file())
        kept = (path for path in paths if not {"user", "__pycache__", "host.log"} & set(path.parts))
        return {path.as_posix() for path in kept}

    def start(self):
        return Host(self.comfyui, comfyui=self.comfyui)


@pytest.fixture
def manager(tmp_path, monkeypatch):
    if not dev_setup.MANAGER_PYTHON.is_file():
        pytest.skip("comfyui-manager is not installed: `python3 scripts/dev.py test` installs it where it can")
    monkeypatch.setattr(comfy_host, "make_base", lambda base: None)  # which would link the pack
    return Manager(tmp_path)


@pytest.fixture
def repository(tmp_path):
    repository = Repository(tmp_path / "repository")
    yield repository
    repository.server.shutdown()


def ours(host):
    return {name: node for name, node in host.object_info().items() if node["python_module"].endswith(NAME)}


def test_install_update_uninstall(manager, repository):
    before = manager.files()
    manager("install", repository.url, "--mode", "local")
    folder = manager.comfyui / "custom_nodes" / NAME
    assert (folder / ".git").is_dir()
    with manager.start() as host:
        assert set(ours(host)) == NODES
        assert "Traceback" not in host.log()

    texts = repository.work / "nodes" / "decode.py"
    texts.write_text(re.sub(r'description="[^"]*"', 'description="Newer."', texts.read_text(encoding="utf-8")))
    repository.publish()
    manager("update", NAME, "--mode", "local")
    with manager.start() as host:
        assert set(ours(host)) == NODES
        assert ours(host)["VGTDecode"]["description"] == "Newer."
    (manager.comfyui / "models" / "vgt").mkdir(exist_ok=True)
    (manager.comfyui / "models" / "vgt" / "mine.safetensors").write_bytes(b"a model of the user's")

    manager("uninstall", NAME, "--mode", "local")
    assert not folder.exists()
    left = {name for name in manager.files() - before if not name.startswith("input/vgt_")}  # pictures to train with
    assert left == {"models/vgt/mine.safetensors"}


def test_without_a_network_nothing_is_installed_and_the_log_says_so(manager, repository):
    before = manager.files()
    repository.server.shutdown()
    repository.server.server_close()
    said = manager("install", repository.url, "--mode", "local")
    print(said)
    assert "ERROR" in said
    assert "Successful" not in said
    assert manager.files() == before
