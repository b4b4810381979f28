"""The Loader downloads a published model in a real ComfyUI, from a local hub."""

import re

import pytest

import workflows
from graphs import SAMPLER, load, node
from host import Host, HostError, Interrupted
from hub_server import HubServer, published_repositories

NAME = "VGT-Qwen2.5-VL-2B-SFT"
WEIGHTS = "hustvl/vgt_qwen25vl_2B_sft/iter_5000.pth"


@pytest.fixture(scope="module")
def hub():
    with HubServer(published_repositories()) as running:
        yield running


@pytest.fixture(scope="module")
def hub_host(hub, tmp_path_factory):
    base = tmp_path_factory.mktemp("hub-home")
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(base / "hf"), "HF_HUB_OFFLINE": "0"}
    with Host(base / "comfy", env=env) as running:
        yield running


def draw(name):
    """A graph that loads a model by name and draws a small picture with it."""
    return load(name) | {
        "draw": node("VGTARSampler", model=["load", 0], **SAMPLER),
        "decode": node("VGTDecode", samples=["draw", 0], vae=["load", 1]),
        "show": node("PreviewImage", images=["decode", 0]),
    }


def test_nothing_is_downloaded_by_starting(hub, hub_host):
    options = hub_host.object_info("VGTLoader")["input"]["required"]["model"][1]["options"]
    assert NAME in options
    assert not hub.requests


def test_cancel_and_then_the_rest_of_it(hub, hub_host):
    hub.delay = 0.05
    with hub_host.events() as events:
        prompt = hub_host.queue(draw(NAME))

        def under_way(data):
            return any(
                state["node_id"] == "load" and 0.3 < state["value"] / state["max"] < 1
                for state in data["nodes"].values()
            )

        events.wait_for("progress_state", under_way)
        hub.delay = 1.0  # what is left takes longer than any Cancel
        hub_host.interrupt()
        with pytest.raises(Interrupted):
            hub_host.wait(prompt, timeout=120)
    assert not list((hub_host.base / "models" / "vgt").glob("*.safetensors"))

    hub.delay = 0
    assert hub_host.run(draw(NAME))["show"]["images"]
    assert (hub_host.base / "models" / "vgt" / f"{NAME}.safetensors").is_file()
    *_, resumed = hub.ranges(WEIGHTS)
    assert int(resumed.removeprefix("bytes=").rstrip("-")) > 300_000  # it went on where it was, not from the start


def test_the_file_is_used_from_then_on(hub, hub_host):
    if not (hub_host.base / "models" / "vgt" / f"{NAME}.safetensors").is_file():
        hub_host.run(draw(NAME))
    asked = len(hub.requests)
    hub_host.free()
    for name in (NAME, f"{NAME}.safetensors"):
        assert hub_host.run(draw(name))["show"]["images"]
    assert len(hub.requests) == asked


def test_two_graphs_ask_for_the_same_model(hub, hub_host):
    name, weights = "VGT-InternVL3-1.6B-SFT", "hustvl/vgt_internvl3_1_6B_sft/iter_5000.pth"
    prompts = [hub_host.queue(draw(name)) for _ in range(2)]
    for prompt in prompts:
        hub_host.wait(prompt)
    assert sum(1 for method, path, _ in hub.requests if method == "GET" and path == weights) <= 2  # hub, then storage


def test_the_template_of_a_published_model(hub_host):
    outputs = hub_host.run(workflows.to_api(hub_host, "VGT-9-published-weights-4-GB"))
    assert [picture.size for picture in workflows.pictures(hub_host, outputs)] == [(448, 448)]


def test_a_hub_that_does_not_have_it(hub, hub_host):
    hub.statuses["hustvl/vgt_internvl3_1_6B_pretrain"] = [404] * 10
    with pytest.raises(HostError, match=r"hustvl/vgt_internvl3_1_6B_pretrain.*404"):
        hub_host.run(draw("VGT-InternVL3-1.6B-Pretrain"))
    assert hub_host.run(draw(NAME))["show"]["images"]


def test_without_a_network_it_says_which_files_to_put_where(tmp_path):
    """Also of a template, which the host accepts and whose first node ends so. Without the flag: files/test_hub.py."""
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    with Host(tmp_path / "comfy", env=env) as offline:
        with pytest.raises(HostError, match=r"offline mode") as caught:
            offline.run(draw(NAME))
        with pytest.raises(HostError, match=r"offline mode") as of_template:
            offline.run(workflows.to_api(offline, "VGT-9-published-weights-4-GB"))
    assert of_template.value.node_type == "VGTLoader"
    assert caught.value.exception_type == "vgt.Offline"
    (title, *lines) = str(caught.value).splitlines()
    assert title.endswith("Fetch these elsewhere, and run again:")
    assert [line.startswith("- ") for line in lines] == [True] * 3
    assert re.search(r"^- hustvl/vgt_qwen25vl_2B_sft: the .pth file into .*models.vgt", lines[0])
