"""The real ComfyUI starts with this pack in it, and tests/host.py can drive it."""

import io
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

import comfy_host
from comfy_events import EventStream
from host import ROOT, Host, HostError, PromptRejected, comfyui_path


def save_image(**image):
    """A graph of stock nodes that makes and saves one picture of one colour."""
    image = {"width": 16, "height": 8, "batch_size": 1, "color": 0x336699, **image}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "test_host"}},
    }


def test_pack_is_imported_without_error(host):
    log = host.log().split("Starting server")[0]
    line = re.search(r"([\d.]+) seconds(.*): .*ComfyUI-VGT$", log, re.MULTILINE)
    assert line, "the host did not report importing the pack"
    assert line[2] == "", log
    assert "Traceback" not in log


def test_an_older_host_is_told_so(tmp_path):
    (tmp_path / "comfy_api").mkdir()  # as before 0.3.48: without `latest`
    (tmp_path / "comfy_api" / "__init__.py").touch()
    (tmp_path / "pack").symlink_to(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", "import pack; print(hasattr(pack, 'comfy_entrypoint'))"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{comfyui_path()}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert done.stderr == "ERROR:root:VGT needs ComfyUI 0.3.48 or newer: update ComfyUI, then start it again.\n"


def test_run_returns_the_picture(host):
    with host.events() as events:
        outputs = host.run(save_image(color=0x336699))
        events.wait_for("executed", lambda data: data["node"] == "2")
        assert events.wait_for("progress_state").data["nodes"]
    image = outputs["2"]["images"][0]
    picture = Image.open(io.BytesIO(host.view(**image)))
    assert picture.size == (16, 8)
    assert picture.getpixel((0, 0)) == (0x33, 0x66, 0x99)
    assert (host.base / "output" / image["filename"]).is_file()


def test_a_connection_that_is_refused_says_so(host):
    with pytest.raises(OSError, match="refused the WebSocket connection"):
        EventStream("127.0.0.1", comfy_host.free_port(), "nobody")
    with host.events() as events:
        pass
    with pytest.raises(TimeoutError, match="executed"):  # closed: nothing more can come
        events.wait_for("executed", timeout=5)


def test_invalid_prompt_is_rejected_and_says_where(host):
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\).*width") as caught:
        host.queue(save_image(width=0))
    assert "1" in caught.value.node_errors


def test_error_in_a_node_is_raised_and_the_host_lives_on(host, tmp_path):
    Image.new("RGB", (2, 1)).save(tmp_path / "upload.png")
    name = host.upload_image(tmp_path / "upload.png")
    load = {"class_type": "LoadImage", "inputs": {"image": name}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "../../outside"}}
    with pytest.raises(HostError, match="outside") as caught:
        host.run({"1": load, "2": save})
    assert (caught.value.node_id, caught.value.node_type) == ("2", "SaveImage")
    save["inputs"]["filename_prefix"] = "inside"
    assert host.run({"1": load, "2": save})["2"]["images"]


def test_free_and_interrupt_are_harmless_when_idle(host):
    host.interrupt()
    host.free()
    assert host.run(save_image())["2"]["images"]


def test_host_that_does_not_start_says_why(tmp_path):
    broken = Host(tmp_path, args=["--no-such-option"])
    with pytest.raises(HostError, match=r"(?s)ended with exit code 2 .*unrecognized arguments: --no-such-option"):
        broken.start()
    assert broken.process is None
