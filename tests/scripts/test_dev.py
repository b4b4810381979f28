"""The parts of the scripts that need no host: converting workflows, requirement lists, the graph's prompt."""

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import dev
import dev_setup
from comfy_events import _binary_event
from host import ROOT
from workflow_api import WorkflowError, to_api

INFO = {
    "Load": {
        "display_name": "Load It",
        "input": {"required": {"name": [["a", "b"]], "upload": ["IMAGEUPLOAD", {}]}},
        "input_order": {"required": ["name", "upload"]},
    },
    "Sample": {
        "input": {
            "required": {
                "seed": ["INT", {"control_after_generate": True}],
                "model": ["MODEL"],
                "prompt": ["STRING", {}],
            },
            "optional": {"cfg": ["FLOAT", {"default": 4.5}], "order": ["COMBO", {"options": ["random", "raster"]}]},
        },
        "input_order": {"required": ["model", "prompt", "seed"], "optional": ["cfg", "order"]},
    },
}


def node(id, type, values=(), inputs=(), outputs=(), **more):
    """A node as the interface saves it; inputs are (name, type, link), outputs are types."""
    return {
        "id": id,
        "type": type,
        "widgets_values": list(values),
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": kind, "type": kind} for kind in outputs],
        **more,
    }


def sampler(link=None, values=("a cat", 7, "randomize"), **more):
    return node(2, "Sample", values, [("model", "MODEL", link)], ["LATENT"], **more)


def convert(nodes, links=()):
    return to_api({"nodes": nodes, "links": [[*link, "*"] for link in links]}, INFO)


def test_widgets_links_and_defaults():
    graph = convert([node(1, "Load", ["b", "image"], outputs=["MODEL"]), sampler(9)], [(9, 1, 0, 2, 0)])
    assert graph["1"] == {"class_type": "Load", "inputs": {"name": "b"}, "_meta": {"title": "Load It"}}
    expected = {"model": ["1", 0], "prompt": "a cat", "seed": 7, "cfg": 4.5, "order": "random"}
    assert graph["2"]["inputs"] == expected


def test_value_behind_the_seed_is_skipped_only_if_it_is_the_control():
    assert convert([sampler(values=["", 7, "fixed", 2.0, "raster"])])["2"]["inputs"]["cfg"] == 2.0
    assert convert([sampler(values=["", 7, 2.0, "raster"])])["2"]["inputs"]["order"] == "raster"


def test_notes_and_muted_nodes_are_left_out():
    muted = node(1, "Load", ["a"], outputs=["MODEL"], mode=2)
    graph = convert([node(5, "MarkdownNote", ["hello"]), muted, sampler(9)], [(9, 1, 0, 2, 0)])
    assert list(graph) == ["2"]
    assert "model" not in graph["2"]["inputs"]


@pytest.mark.parametrize(
    "between",
    [
        node(3, "Reroute", inputs=[("", "*", 8)], outputs=["MODEL"]),
        node(3, "Anything", inputs=[("x", "IMAGE", None), ("model", "MODEL", 8)], outputs=["MODEL"], mode=4),
    ],
    ids=["reroute", "bypassed"],
)
def test_reroutes_and_bypassed_nodes_are_seen_through(between):
    nodes = [node(1, "Load", ["a"], outputs=["MODEL"]), between, sampler(9)]
    graph = convert(nodes, [(8, 1, 0, 3, 1), (9, 3, 0, 2, 0)])
    assert list(graph) == ["1", "2"]
    assert graph["2"]["inputs"]["model"] == ["1", 0]


def test_primitive_gives_its_value():
    target = sampler()
    target["inputs"].append({"name": "seed", "type": "INT", "link": 9, "widget": {"name": "seed"}})
    graph = convert([node(4, "PrimitiveNode", [42, "fixed"], outputs=["INT"]), target], [(9, 4, 0, 2, 1)])
    assert graph["2"]["inputs"]["seed"] == 42


def test_link_objects_of_newer_interfaces():
    link = {"id": 9, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "MODEL"}
    graph = to_api({"nodes": [node(1, "Load", ["a"], outputs=["MODEL"]), sampler(9)], "links": [link]}, INFO)
    assert graph["2"]["inputs"]["model"] == ["1", 0]


def test_unknown_node_and_wrong_file_are_named():
    with pytest.raises(WorkflowError, match="node 1 is a 'Nowhere'"):
        convert([node(1, "Nowhere")])
    with pytest.raises(WorkflowError, match="list of nodes"):
        to_api({"1": {"class_type": "Load", "inputs": {}}}, INFO)


def test_torch_is_left_out_of_the_host_requirements():
    kept = dev_setup.without_torch(
        "torch\ntorchsde\ntorchvision>=0.2\n  torchaudio ; python_version > '3'\n# torch\nnumpy>=1.25\n"
    )
    assert kept == "torchsde\n# torch\nnumpy>=1.25\n"


def test_fingerprint_sees_what_stands_where():
    assert dev_setup.fingerprint(["ab", "c"]) != dev_setup.fingerprint(["a", "bc"])
    assert dev_setup.fingerprint(["a"]) == dev_setup.fingerprint(["a"])


def test_prompt_is_set_where_one_is_typed_in():
    graph = convert([sampler()])
    dev.set_prompt(graph, "a dog")
    assert graph["2"]["inputs"]["prompt"] == "a dog"
    with pytest.raises(dev_setup.Failure, match="no node with a prompt"):
        dev.set_prompt({}, "a dog")


@pytest.mark.parametrize("command", ["demo", "test", "serve"])
def test_starts_with_the_standard_library_alone(command):
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "scripts" / "dev.py", command, "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_demo_goes_on_in_the_environment_that_setting_up_made(monkeypatch):
    commands = []
    monkeypatch.setattr(dev_setup, "prepare", lambda: "ComfyUI")
    monkeypatch.setattr(dev, "VENV", Path("elsewhere"))
    monkeypatch.setattr(os, "name", "posix")
    monkeypatch.setattr(os, "execv", lambda path, command: commands.append(command) or 0)
    monkeypatch.setattr(sys, "argv", ["dev.py", "demo", "--prompt", "a star"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert dev.main() == 0
    assert commands == [[str(dev_setup.PYTHON), "dev.py", "demo", "--prompt", "a star"]]


def test_previews_and_progress_texts_are_read():
    metadata = b'{"node_id": "3", "image_type": "image/png"}'
    event = _binary_event(struct.pack(">II", 4, len(metadata)) + metadata + b"picture")
    assert (event.type, event.data) == ("preview", {"node_id": "3", "image_type": "image/png", "image": b"picture"})
    assert _binary_event(struct.pack(">II", 1, 2) + b"picture").data == {"image": b"picture", "image_type": "image/png"}
    assert _binary_event(struct.pack(">II", 3, 1) + b"7half").data == {"node_id": "7", "text": "half"}


def ran_by(monkeypatch, newer, *arguments):
    """(python, ComfyUI, command) of each run that `dev.py test` starts."""
    runs = []

    def run(command, cwd, env):
        runs.append((command[0], env["COMFYUI_PATH"], command[2:]))
        return dev.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(dev.subprocess, "run", run)
    assert dev.test("here", False, False, newer, list(arguments)) == 0
    return runs


def test_nodes_are_tested_on_both_hosts(monkeypatch):
    *_, first, second = ran_by(monkeypatch, True)
    assert first == (dev_setup.PYTHON, "here", ["pytest", "-m", "not soak and not browser"])
    python, comfyui, (_, _, markers, *files) = second
    assert (python, comfyui) == (dev_setup.NEWER_PYTHON, str(dev_setup.NEWER))
    assert markers.startswith("host")
    assert files
    assert all((dev.ROOT / file).exists() for file in files)


def test_where_the_newer_host_cannot_be_had_one_is_enough(monkeypatch):
    assert {comfyui for _, comfyui, _ in ran_by(monkeypatch, False, "tests/run")} == {"here"}


def test_gpu_needs_no_set_up_where_pytorch_is_there_already(monkeypatch, tmp_path):
    """As on a machine without network."""
    ran = []

    def run(command, **_):
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(dev, "PYTHON", tmp_path / "python")
    monkeypatch.setattr(dev.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["dev.py", "gpu", "ways"])
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert dev.main() == 0
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert ran == [[sys.executable, "-m", "benchmarks.gpu", "ways"]]
