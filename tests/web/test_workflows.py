"""The files in workflows/: complete, well laid out, offered by the host, and each runs in it to its pictures."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import workflow_api
import workflows
from workflows import ALL, PICTURES, SQUARE, same

BYPASSED = 4
TITLE = 30  # height of a node's title bar, which lies above its pos
WITH_PREVIEW = 834  # height of VGT AR Sampler when it shows a picture, in either host's classic renderer


@pytest.fixture(scope="module")
def ready(host):
    workflows.prepare(host)
    return host


def test_every_file_is_known_here_and_has_a_thumbnail():
    assert {path.stem for path in workflows.FOLDER.glob("*.json")} == set(ALL)
    for name in ALL:
        with Image.open(workflows.FOLDER / f"{name}.jpg") as picture:
            assert picture.format == "JPEG"
            assert max(picture.size) <= 512


@pytest.mark.parametrize("name", ALL)
def test_is_as_the_interface_saves_it_with_a_note(name):
    workflow = workflows.read(name)
    assert workflow["version"] == 0.4
    assert workflow["extra"]["frontendVersion"]
    assert any(node["type"] == "MarkdownNote" and node["widgets_values"][0] for node in workflow["nodes"])
    saves = [node for node in workflow["nodes"] if node["type"] == "SaveImage"]
    prefixes = [node["widgets_values"][0] for node in saves]
    assert len(set(prefixes)) == len(saves)
    assert all(prefix.startswith("VGT/") for prefix in prefixes)


@pytest.mark.parametrize("name", ALL)
def test_nothing_overlaps(name):
    workflow = workflows.read(name)
    nodes = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], grown(node)
        nodes[node["id"], node["type"]] = (x, y - TITLE, x + width, y + height)
    groups = {}
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        groups[group["title"]] = (x, y, x + width, y + height)
    for boxes in (nodes, groups):
        for (one, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
            assert not overlap(box, other_box), f"{one} and {other} overlap"
    for (key, box), (title, frame) in itertools.product(nodes.items(), groups.items()):
        assert inside(box, frame) or not overlap(box, frame), f"{key} lies across the border of {title}"


def grown(node):
    """Width and height of a node after a run."""
    width, height = node["size"]
    return width, max(height, WITH_PREVIEW) if node["type"] == "VGTARSampler" else height


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def inside(box, frame):
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def test_the_host_offers_them_under_the_packs_name(ready):
    offered = ready.get("/workflow_templates")["ComfyUI-VGT"]
    assert sorted(offered) == sorted(ALL)
    for name in ALL:
        assert ready.get(f"/api/workflow_templates/ComfyUI-VGT/{name}.json") == workflows.read(name)


@pytest.mark.parametrize("name", PICTURES)
def test_runs_to_its_pictures(ready, name):
    outputs = ready.run(workflows.to_api(ready, name))
    pictures = workflows.pictures(ready, outputs)
    assert [picture.size for picture in pictures] == PICTURES[name]
    for picture in pictures:
        assert np.asarray(picture).std() > 1, "the picture is of one colour"


def test_the_fastest_way_changes_the_picture_and_the_slowest_is_plain_text_to_image(ready):
    (plain,) = workflows.pictures(ready, ready.run(workflows.to_api(ready, "VGT-1-text-to-image")))
    one, four, sixteen = workflows.pictures(ready, ready.run(workflows.to_api(ready, "VGT-2-parallel-decoding")))
    assert same(plain, one)
    assert not same(one, four)
    assert not same(one, sixteen)


def test_inpaint_keeps_the_left_half_and_outpaint_the_old_picture(ready):
    """Seen in the latents, where keeping is exact: the pictures of all cells depend a little on each other."""
    for name, kept in (("VGT-3-inpaint", np.s_[:, :, :, :4]), ("VGT-4-outpaint", np.s_[:, :, :, 2:6])):
        graph = workflows.to_api(ready, name)
        repaint = next(node for node in graph.values() if "latent" in node["inputs"])
        ends = [repaint["inputs"]["latent"], next([key, 0] for key, node in graph.items() if node is repaint)]
        for index, end in enumerate(ends):
            inputs = {"samples": end, "filename_prefix": f"VGT/{name}"}
            graph[f"{1000 + index}"] = {"class_type": "SaveLatent", "inputs": inputs}
        outputs = ready.run(graph)
        before, after = (saved_latent(ready, outputs[key]) for key in ("1000", "1001"))
        assert before.shape == after.shape == (1, 32, 8, 8)
        changed = (before != after).any(1, keepdim=True)
        assert not changed[kept].any()
        assert changed.sum() == changed.numel() - changed[kept].numel()


@pytest.mark.parametrize(("name", "sizes"), [("VGT-3-inpaint", [SQUARE] * 2), ("VGT-5-variations", [SQUARE] * 6)])
def test_the_branch_for_a_picture_of_ones_own_is_ready(ready, name, sizes):
    """Bypassed as it ships; switched on, the picture from outside is brought to the model's size."""
    workflow = workflows.read(name)
    (group,) = (group for group in workflow["groups"] if "Your own picture" in group["title"])
    x, y, width, height = group["bounding"]
    own = [node for node in workflow["nodes"] if inside((*node["pos"],) * 2, (x, y, x + width, y + height))]
    assert {node["type"] for node in own} >= {"LoadImage", "VGTEncode", "VGTARSampler", "SaveImage"}
    assert {node["mode"] for node in own} == {BYPASSED}
    for node in own:
        node["mode"] = 0
    graph = workflow_api.to_api(workflow, ready.object_info())
    pictures = workflows.pictures(ready, ready.run(graph))
    assert [picture.size for picture in pictures] == sizes


@pytest.mark.parametrize("name", ALL)
def test_everything_is_on_the_first_screen(name):
    """At 1600x900, right of the side bar and below the tabs; also when samplers show previews."""
    workflow = workflows.read(name)
    scale, (left, top) = workflow["extra"]["ds"]["scale"], workflow["extra"]["ds"]["offset"]
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], grown(node)
        assert (x + left) * scale >= 64 and (x + width + left) * scale <= 1600, node["type"]
        assert (y - TITLE + top) * scale >= 80 and (y + height + top) * scale <= 900, node["type"]


@pytest.mark.parametrize("name", ALL)
def test_no_node_is_deprecated(ready, name):
    known = ready.object_info()
    types = {node["type"] for node in workflows.read(name)["nodes"]} - {"MarkdownNote"}
    assert [kind for kind in types if known[kind].get("deprecated")] == []


def test_latent_tools_saves_both_latents(ready):
    outputs = ready.run(workflows.to_api(ready, "VGT-7-latent-tools"))
    (node,) = (node for node in outputs.values() if "latents" in node)
    assert saved_latent(ready, node).shape == (1, 32, 8, 16)


def test_a_saved_picture_carries_the_workflow(ready):
    workflow = workflows.read("VGT-6-reconstruct")
    graph = workflows.to_api(ready, "VGT-6-reconstruct")
    outputs = ready.wait(ready.queue(graph, extra_pnginfo={"workflow": workflow}))
    (picture,) = workflows.pictures(ready, outputs)
    assert json.loads(picture.info["workflow"]) == workflow
    assert json.loads(picture.info["prompt"]).keys() == graph.keys()


def saved_latent(host, output):
    (entry,) = output["latents"]
    return load_file(host.base / "output" / entry["subfolder"] / entry["filename"])["latent_tensor"]
