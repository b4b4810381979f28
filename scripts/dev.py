"""Set up and run everything a developer needs: `python3 scripts/dev.py demo | test | serve | gpu`.

Standard library only until .venv is there. The first run makes .venv, installs PyTorch, ComfyUI's requirements and
requirements-dev.txt into it, and gets ComfyUI into .cache/ComfyUI (or uses the one that the environment variable
COMFYUI_PATH names); later runs check a stamp and start work at once.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import comfy_host
import dev_setup
import workflow_api
from dev_setup import CACHE, NEWER_PYTHON, PYTHON, ROOT, VENV, Failure, Killed, say, started


def in_venv():
    """Whether this is the python of .venv, which has ComfyUI's requirements."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def again_in_venv():
    """Run the same command with the python of .venv, in this process where the system can. Returns the exit status."""
    command = [str(PYTHON), *sys.argv]
    if os.name == "nt":  # where exec starts another process and ends this one
        return subprocess.run(command).returncode
    sys.stdout.flush()
    return os.execv(command[0], command)


def demo(comfyui, prompt, output):
    """Run the starter of workflows/ in a ComfyUI of its own and say where the picture is. Returns exit status 0."""
    path = ROOT / "workflows" / "VGT-1-text-to-image.json"
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {path}: {error}") from None
    output.mkdir(parents=True, exist_ok=True)
    base = CACHE / "demo-home"
    host = comfy_host.Host(comfyui, base, PYTHON, args=["--output-directory", str(output)], log=CACHE / "demo.log")
    say("starting ComfyUI with this pack")
    with host:
        say(f"ComfyUI answers at {host.address}")
        graph = workflow_api.to_api(workflow, host.object_info())
        if prompt is not None:
            set_prompt(graph, prompt)
        say(f"running {path.name}")
        with host.events() as events:
            prompt_id = host.queue(graph, extra_pnginfo={"workflow": workflow})
            outputs = host.wait(prompt_id, timeout=3600, while_waiting=lambda: show_progress(graph, events))
        pictures = [image for node in outputs.values() for image in node.get("images", []) if image["type"] == "output"]
    if not pictures:
        raise Failure(f"{path.name} ran but saved no picture: it needs a Save Image node.")
    for picture in pictures:
        say(f"picture: {output / picture['subfolder'] / picture['filename']}")
    return 0


def set_prompt(graph, prompt):
    """Put a prompt into every node of the graph that has one typed in. Raises Failure if none has."""
    nodes = [node for node in graph.values() if isinstance(node["inputs"].get("prompt"), str)]
    if not nodes:
        raise Failure("the workflow has no node with a prompt to replace: leave --prompt out.")
    for node in nodes:
        node["inputs"]["prompt"] = prompt


def show_progress(graph, events):
    """Show how far the running nodes are, on one line that is written over; nothing where no person looks on."""
    states = events.of("progress_state")
    if not states or not sys.stdout.isatty():
        return
    running = [
        f"{graph[key]['_meta']['title']} {state['value']:.0f} of {state['max']:.0f}"
        for key, state in states[-1]["nodes"].items()
        if key in graph and state["state"] == "running"
    ]
    width = shutil.get_terminal_size().columns - 12
    print(f"\r[{time.monotonic() - started:4.0f} s] {', '.join(running)[:width]:{width}}", end="\r", flush=True)


def serve(comfyui, port, arguments):
    """Run ComfyUI in the foreground until Ctrl-C. Raises Failure if it ends by itself."""
    host = comfy_host.Host(comfyui, CACHE / "comfy-home", PYTHON, args=arguments, port=port)
    say("starting ComfyUI with this pack")
    with host:
        say(f"ComfyUI answers at {host.address} - Ctrl-C ends it")
        while host.process.poll() is None:  # not wait(): on Windows Ctrl-C does not end it
            time.sleep(0.5)
        raise Failure(f"ComfyUI ended by itself, with exit code {host.process.returncode}: see its output above.")


NEWER_HOST_TESTS = ["tests/nodes", "tests/web/test_workflows.py"]
"""What a host can answer for. The rest of the tests run on one host alone."""
NEWER_HOST_BROWSER_TESTS = ["tests/web/test_first_minutes.py"]
"""What a person meets first, in the newer host's own interface."""


def test(comfyui, soak, browser, newer, arguments):
    """Lint and run the tests, those of the nodes on the newer host as well if `newer`.

    All of them run even if one fails. Returns the exit status.
    """
    left_out = [name for name, chosen in (("soak", soak), ("browser", browser)) if not chosen]
    markers = " and ".join(f"not {name}" for name in left_out)
    runs = [
        ("ruff check", PYTHON, comfyui, ["ruff", "check"]),
        ("ruff format", PYTHON, comfyui, ["ruff", "format", "--check"]),
        ("pytest", PYTHON, comfyui, ["pytest", "-m", markers, *arguments]),
    ]
    if newer:
        command = ["pytest", "-m", "host and not soak and not browser", *NEWER_HOST_TESTS]
        runs.append((f"pytest on ComfyUI {dev_setup.NEWER_VERSION}", NEWER_PYTHON, dev_setup.NEWER, command))
    if newer and browser:
        command = ["pytest", "-m", "browser", *NEWER_HOST_BROWSER_TESTS]
        name = f"pytest in a browser on ComfyUI {dev_setup.NEWER_VERSION}"
        runs.append((name, NEWER_PYTHON, dev_setup.NEWER, command))
    failed = []
    for name, python, host, command in runs:
        say(name)
        environment = {**os.environ, "COMFYUI_PATH": str(host)}
        if subprocess.run([python, "-m", *command], cwd=ROOT, env=environment).returncode:
            failed.append(name)
    say(f"failed: {', '.join(failed)}" if failed else "passed")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description="Set up and run ComfyUI-VGT for development.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | test | serve | gpu")
    parts = commands.add_parser("demo", help="make a picture with workflows/VGT-1-text-to-image.json in a real ComfyUI")
    parts.add_argument("--prompt", metavar="TEXT", help="what to draw (default: the workflow's own prompt)")
    parts.add_argument(
        "--output", metavar="DIR", type=Path, default=ROOT / "output", help="where to save (default: output)"
    )
    parts = commands.add_parser("test", help="lint and run the tests; further arguments go to pytest")
    parts.add_argument("--soak", action="store_true", help="run the long tests (fuzzing, endurance) too")
    parts.add_argument("--browser", action="store_true", help="run the tests in a real browser too")
    parts = commands.add_parser("serve", help="run ComfyUI with this pack; further arguments go to ComfyUI")
    parts.add_argument("--port", type=int, metavar="N", default=8188, help="where it answers (default: 8188)")
    commands.add_parser("gpu", help="all that waits for a GPU, in parts; without one, a small form of it")
    options, rest = parser.parse_known_args()
    if rest and options.command == "demo":
        parser.error(f"demo takes no {' '.join(rest)}")
    # Without this a kill would leave ComfyUI running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - what an older Python reaches
            raise Failure(f"this is Python {sys.version.split()[0]}: run it with Python 3.10 or later.")
        if options.command == "gpu" and not PYTHON.exists() and importlib.util.find_spec("torch"):
            # a machine with PyTorch and no network: all but what wants ComfyUI
            return subprocess.run([sys.executable, "-m", "benchmarks.gpu", *rest], cwd=ROOT).returncode
        comfyui = dev_setup.prepare()
        if options.command == "test":
            dev_setup.install_manager()
        if options.command == "test" and options.browser:
            try:
                dev_setup.install_browser()
            except Killed:
                raise
            except Failure as error:
                say(f"going on without the tests in a browser, as this {error}")
            dev_setup.fetch_frontend()
        if options.command == "demo":
            if not in_venv():  # listening to ComfyUI needs aiohttp
                return again_in_venv()
            return demo(comfyui, options.prompt, options.output.resolve())
        if options.command == "gpu":
            environment = {**os.environ, "COMFYUI_PATH": str(comfyui)}
            return subprocess.run([PYTHON, "-m", "benchmarks.gpu", *rest], cwd=ROOT, env=environment).returncode
        if options.command == "serve":
            return serve(comfyui, options.port, rest)
        # Whoever names files or a ComfyUI of their own wants those alone.
        newer = not rest and not os.environ.get("COMFYUI_PATH") and dev_setup.install_newer_host()
        return test(comfyui, options.soak, options.browser, newer, rest)
    except (Failure, OSError, comfy_host.HostError, workflow_api.WorkflowError) as error:
        say(f"failed: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
