"""The blueprint in subgraphs/, which newer hosts offer in their node library: one node for text to image."""

import json

import pytest

import workflow_api
import workflows
from host import ROOT, is_newer

PATH = ROOT / "subgraphs" / "VGT Text to Image.json"


def read():
    """The whole file, its node, and the graph inside it."""
    content = json.loads(PATH.read_text(encoding="utf-8"))
    (placed,), (inside,) = content["nodes"], content["definitions"]["subgraphs"]
    return content, placed, inside


def test_what_the_node_shows_is_inside_it():
    _, placed, inside = read()
    assert placed["type"] == inside["id"]
    assert [one["name"] for one in placed["outputs"]] == [one["name"] for one in inside["outputs"]]
    assert {key for key, _ in placed["properties"]["proxyWidgets"]} <= {str(node["id"]) for node in inside["nodes"]}


@pytest.mark.skipif(not is_newer(), reason="this host knows no blueprints of node packs")
def test_the_host_offers_it(host):
    offered = host.get("/global_subgraphs")
    (key,) = (key for key, one in offered.items() if one["info"]["node_pack"] == "custom_nodes.ComfyUI-VGT")
    assert offered[key]["name"] == PATH.stem
    assert json.loads(host.get(f"/global_subgraphs/{key}")["data"]) == read()[0]


def test_the_graph_inside_draws(host):
    """Laid out as the interface does before it queues: the nodes inside, and a Save Image at the output."""
    workflows.prepare(host)
    _, placed, inside = read()
    known = host.object_info()
    for key, name in placed["properties"]["proxyWidgets"]:
        (kind,) = (node["type"] for node in inside["nodes"] if str(node["id"]) == key)
        assert name in {**known[kind]["input"]["required"], **known[kind]["input"].get("optional", {})}
    parts = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [[link[part] for part in parts] for link in inside["links"]]
    (end,) = (link for link in links if link[3] == inside["outputNode"]["id"])
    flat = {"nodes": inside["nodes"], "links": [link for link in links if link is not end]}
    graph = workflow_api.to_api(flat, known)
    graph["9"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [str(end[1]), end[2]], "filename_prefix": "VGT/blueprint"},
    }
    (picture,) = workflows.pictures(host, host.run(graph))
    assert picture.size == workflows.SQUARE
