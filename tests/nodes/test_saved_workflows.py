"""Workflows saved by earlier versions of the pack: tests/saved/VERSION.json, no value at its default.

The interface saves a node's values by their place: one put in between would move all that follow.
"""

import copy
import json

import numpy as np
import pytest

import vgt
import workflow_api
import workflows
from bundled import NAME, PATH
from host import ROOT, PromptRejected

SAVED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "tests" / "saved").glob("*.json")}
VALUES = {
    "VGTLoader": {"model": "vgt-tiny.safetensors", "dtype": "fp32"},
    "VGTEncode": {"fit": "stretch"},
    "VGTDecode": {},
    "VGTFlowHeadSettings": {
        "steps": 3,
        "cfg_schedule": "constant",
        "last_step": 0.1,
        "solver": "euler",
        "temperature": 0.8,
    },
    "VGTARSampler": {
        "prompt": "a green triangle",
        "negative_prompt": "red",
        "seed": 12345,
        "width": 84,
        "height": 56,
        "batch_size": 2,
        "cfg": 3.0,
        "tokens_per_step": 2,
        "order": "sequential",
        "decoding": "training-consistent",
        "grouping": "cosine",
        "denoise": 0.9,
    },
}
"""What every version saved, by node: later ones have more."""


@pytest.fixture(scope="module")
def ready(host):
    workflows.prepare(host)
    return host


def values(graph):
    """The typed-in values of the graph's VGT nodes."""
    found = {}
    for node in graph.values():
        if node["class_type"] in VALUES:
            typed = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
            found[node["class_type"]] = typed
    return found


@pytest.mark.parametrize("version", SAVED)
def test_every_value_is_where_it_was_and_the_graph_runs(ready, version):
    graph = workflow_api.to_api(SAVED[version], ready.object_info())
    now = values(graph)
    assert {kind: {name: now[kind][name] for name in VALUES[kind]} for kind in VALUES} == VALUES
    sizes = [picture.size for picture in workflows.pictures(ready, ready.run(graph))]
    assert sizes == [(84, 56)] * 4


@pytest.mark.parametrize("kind", ["workflow", "script"])
def test_a_graph_from_before_presets_draws_what_its_values_say(ready, kind):
    """A workflow of 0.1.0, whose Flow Head Settings has five values; and a script with these five alone."""
    saved = copy.deepcopy(SAVED["0.1.0"])
    sampler = next(node for node in saved["nodes"] if node["type"] == "VGTARSampler")
    sampler["widgets_values"][-1] = 1.0  # denoise: all is drawn
    graph = workflow_api.to_api(saved, ready.object_info())
    (flow,) = (node for node in graph.values() if node["class_type"] == "VGTFlowHeadSettings")
    assert flow["inputs"]["preset"] == "custom"
    if kind == "script":
        flow["inputs"] = dict(VALUES["VGTFlowHeadSettings"])
    own = {**VALUES["VGTARSampler"], "flow": dict(VALUES["VGTFlowHeadSettings"])}
    own["cfg_schedule"] = own["flow"].pop("cfg_schedule")
    own["flow"] = vgt.FlowSettings(**own["flow"])
    prompt, negative, batch = (own.pop(name) for name in ("prompt", "negative_prompt", "batch_size"))
    own.pop("denoise")
    model = vgt.load(ready.base / "models" / "vgt" / NAME if not PATH.exists() else PATH)
    wanted = model.draw([prompt] * batch, negative, **own, cfg_end=1.0)
    drawn = workflows.pictures(ready, ready.run(graph))[:batch]
    for picture, one in zip(drawn, wanted, strict=True):
        off = np.abs(np.asarray(picture, dtype=int) - np.asarray(one, dtype=int))
        assert off.max() <= 1  # the host rounds down


def test_values_that_a_version_did_not_have_yet_get_their_defaults(ready):
    older = copy.deepcopy(SAVED["0.1.0"])
    sampler = next(node for node in older["nodes"] if node["type"] == "VGTARSampler")
    del sampler["widgets_values"][-2:]
    graph = workflow_api.to_api(older, ready.object_info())
    expected = VALUES["VGTARSampler"] | {"grouping": "uniform", "denoise": 1.0}
    expected |= {"stop_at": 1.0, "previews": True}
    assert values(graph)["VGTARSampler"] == expected
    assert len(workflows.pictures(ready, ready.run(graph))) == 4


def test_a_script_with_an_input_that_is_gone_runs_and_one_that_lacks_an_input_is_told_which(ready):
    graph = workflow_api.to_api(SAVED["0.1.0"], ready.object_info())
    sampler = next(node for node in graph.values() if node["class_type"] == "VGTARSampler")
    sampler["inputs"]["style"] = "photographic"
    assert len(workflows.pictures(ready, ready.run(graph))) == 4
    del sampler["inputs"]["grouping"]  # which has a default
    assert len(workflows.pictures(ready, ready.run(graph))) == 4
    del sampler["inputs"]["prompt"]
    with pytest.raises(PromptRejected, match=r"\(VGTARSampler\): Required input is missing: prompt"):
        ready.queue(graph)
