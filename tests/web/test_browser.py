"""The pack in ComfyUI's own interface, driven in a real Chromium; tests/interface.py is how.

Skipped only where there is no Chromium or no Playwright; `python3 scripts/dev.py test --browser` installs both.
"""

import copy
import json
import re
import shutil

import pytest

import workflows
from bundled import SIDE
from host import ROOT
from hub_server import HubServer, published_repositories
from interface import LONG, NODES, shown, visited_host
from workflows import DOWNLOADS, PICTURES, same

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host of this module's own, which downloads from a local hub."""
    with HubServer(published_repositories()) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("hf")), "HF_HUB_OFFLINE": "0"}
        with visited_host(tmp_path_factory.mktemp("comfy-home"), env=env) as running:
            yield running


@pytest.fixture
def interface(host, chromium, request):
    with shown(host, chromium, request.node.name) as interface:
        yield interface


SAVED = json.loads((ROOT / "tests" / "saved" / "0.1.0.json").read_text(encoding="utf-8"))
PLACES = {
    "VGTLoader": [0, 0],
    "VGTEncode": [0, 200],
    "VGTDecode": [0, 390],
    "VGTFlowHeadSettings": [0, 550],
    "VGTRegion": [900, 0],
    "VGTPromptSchedule": [900, 400],
    "VGTLoadLoRA": [900, 800],
    "VGTTrainLoRA": [1300, 0],
}


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in workflows.TRAINS])
def test_template_opens_runs_and_ends_in_its_pictures(interface, name):
    expected = workflows.pictures(interface.host, interface.host.run(workflows.to_api(interface.host, name)))
    interface.host.free()  # or the host would show these again
    interface.open_template(name)
    assert interface.page.get_by_role("dialog").count() == 0  # that of missing nodes or models
    assert interface.missing() == []
    interface.screenshot(f"opened_{name}")
    interface.run()
    pictures = interface.pictures()
    assert [picture.size for picture in pictures] == PICTURES[name]
    assert all(same(*pair) for pair in zip(pictures, expected))
    watch_a_long_run(interface)
    interface.screenshot(f"preview_{name}")
    assert interface.out_of_place("VGTARSampler") == []
    interface.host.interrupt()  # which may come after the end; Cancel has a test of its own
    assert interface.complaints == []


def test_every_template_loaded_and_saved_is_the_same_graph(interface):
    """Nodes in their places with their values, links by the names of their ends, groups. The interface adds sockets of
    widgets, and widgets that are newer than the file, with their defaults.
    """
    different = []
    for name in workflows.ALL:
        workflow = workflows.read(name)
        interface.load(workflow)
        if essence(interface.graph(), like=workflow) != essence(workflow):
            different.append(name)
    assert different == []
    assert interface.complaints == []


def essence(graph, like=None):
    """What another graph must have to be the same; values as far as the nodes of `like` have them."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    count = {node["id"]: len(node.get("widgets_values") or []) for node in (like or graph)["nodes"]}
    parts = {
        key: (
            *(node.get(name) for name in ("type", "title", "mode")),
            (node.get("widgets_values") or [])[: count.get(key)],
            [round(part) for part in node["pos"]],  # a node grows with inputs that are newer than the file
        )
        for key, node in nodes.items()
    }
    links = sorted(
        (start, nodes[start]["outputs"][slot]["name"], end, nodes[end]["inputs"][into]["name"])
        for _, start, slot, end, into, _ in graph["links"]
    )
    groups = [(group["title"], [round(part) for part in group["bounding"]]) for group in graph["groups"]]
    return parts, links, groups


@pytest.mark.parametrize("name", workflows.TRAINS)
def test_template_that_trains_runs(interface, name):
    """From the folder over training, saving and loading to the picture, in one run; in few steps."""
    interface.open_template(name)
    assert interface.missing() == []
    interface.screenshot(f"opened_{name}")
    interface.page.evaluate(
        """() => {
            const node = window.app.graph.nodes.find((node) => node.type === "VGTTrainLoRA");
            for (const [name, value] of [["steps", 3], ["keep", "a red circle"]])
                node.widgets.find((widget) => widget.name === name).value = value;
        }"""
    )
    interface.run()
    assert [picture.size for picture in interface.pictures()] == PICTURES[name]
    interface.screenshot(f"ran_{name}")
    assert list((interface.host.base / "output" / "loras").glob("vgt_crescent_3_steps_*.safetensors"))
    assert interface.complaints == []


@pytest.mark.parametrize("name", DOWNLOADS)
def test_template_with_a_download_runs(interface, name):
    """The hub's model is a small one of the published form."""
    interface.open_template(name)
    assert interface.page.get_by_role("dialog").count() == 0
    assert interface.missing() == []
    interface.run()
    assert [picture.size for picture in interface.pictures()] == [(448, 448)]
    assert interface.complaints == []


def watch_a_long_run(interface):
    """Run with so many flow steps that live previews are due, and wait for one on a sampler and its progress."""
    interface.page.evaluate(
        """() => {
            for (const sampler of app.graph._nodes.filter(n => n.type === 'VGTARSampler')) {
                const settings = LiteGraph.createNode('VGTFlowHeadSettings')
                app.graph.add(settings)
                settings.widgets.find(w => w.name === 'steps').value = 1000
                settings.connect(0, sampler, sampler.inputs.findIndex(i => i.name === 'flow_head'))
            }
        }"""
    )
    interface.run()
    interface.page.wait_for_function("previews.includes('VGTARSampler')")
    interface.page.wait_for_function("seen.some(([type, share]) => type === 'VGTARSampler' && share > 0 && share < 1)")
    interface.page.wait_for_timeout(500)  # for the screenshot to show it


def cancel(interface):
    button = interface.page.get_by_role("button", name="Cancel current run")
    button.click()
    playwright.expect(button).to_be_disabled(timeout=LONG)
    (record,) = interface.host.get("/history?max_items=1").values()
    assert "execution_interrupted" in dict(record["status"]["messages"])


def test_a_link_opens_a_template(interface):
    """README and registry pages can link to it."""
    interface.visit("?template=VGT-1-text-to-image&source=ComfyUI-VGT")
    interface.wait_for_graph(workflows.read("VGT-1-text-to-image"))
    assert interface.complaints == []


def test_help_panel_shows_every_nodes_page(interface):
    interface.load(SAVED)
    for kind in dict.fromkeys(node["type"] for node in SAVED["nodes"] if node["type"] in NODES.values()):
        check_help(interface, kind)
        interface.screenshot(f"help_{kind}")
    assert interface.complaints == []


def test_help_of_the_nodes_that_no_saved_workflow_has(interface):
    kinds = set(NODES.values()) - {node["type"] for node in SAVED["nodes"]}
    for kind in sorted(kinds):
        interface.place(kind)
        check_help(interface, kind)
        interface.screenshot(f"help_{kind}")
    assert len(kinds) >= 4
    assert interface.complaints == []


def check_help(interface, kind):
    panel = interface.help(kind)
    page = (ROOT / "web" / "docs" / f"{kind}.md").read_text(encoding="utf-8")
    assert panel.locator("h1").inner_text() == page.splitlines()[0].removeprefix("# ")
    inputs = re.findall(r"^- \*\*(\w+)\*\*", page, re.MULTILINE)
    shown = panel.locator("strong").all_inner_texts()
    assert inputs
    assert set(inputs) <= set(shown)
    pictures = panel.locator("img")
    assert pictures.count() == len(re.findall(r"!\[", page))
    for index in range(pictures.count()):
        pictures.nth(index).scroll_into_view_if_needed()
        interface.page.wait_for_function("image => image.complete", arg=pictures.nth(index).element_handle())
        assert pictures.nth(index).evaluate("image => image.naturalWidth") > 0
    panel.locator("h1").scroll_into_view_if_needed()


def test_names_are_shown_in_the_interfaces_language(interface):
    if interface.version() < (1, 36):
        pytest.skip("interfaces before 1.36 make nodes before they have the packs' translations")
    for language in ("zh", "ja"):
        check_names(interface, language)


def check_names(interface, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    try:
        interface.choose(Comfy_Locale=language)
        for kind in NODES.values():
            node = interface.page.evaluate(
                """kind => {
                    const node = LiteGraph.createNode(kind)
                    const nameOf = i => [i.name, i.label ?? i.localized_name ?? i.name]
                    const named = [...node.inputs, ...(node.widgets ?? [])].map(nameOf)
                    app.graph.add(node)
                    return { title: node.title, inputs: Object.fromEntries(named) }
                }""",
                kind,
            )
            assert node["title"] == texts[kind]["display_name"]
            names = {key: entry["name"] for key, entry in texts[kind]["inputs"].items()}
            assert {key: node["inputs"][key] for key in names} == names
    finally:
        interface.choose(Comfy_Locale="en")
    assert interface.complaints == []


@pytest.mark.parametrize("renderer", ("classic", "nodes_2"))
def test_every_node_shows_all_its_inputs_and_outputs(interface, renderer):
    schemas = {kind: interface.host.object_info(kind) for kind in NODES.values()}
    with interface.renderer(renderer):
        interface.load(side_by_side(interface))
        interface.look(0.9)
        interface.page.wait_for_timeout(2000)  # the renderers lay out over several frames
        interface.screenshot(f"all_nodes_{renderer}_{'.'.join(map(str, interface.version()))}")
        for kind, node in interface.page.evaluate("app.graph._nodes.map(n => [n.type, n.id])"):
            schema = schemas.pop(kind)
            inputs = [name for kind_of, names in schema["input_order"].items() if kind_of != "hidden" for name in names]
            shown = (in_nodes_2 if renderer == "nodes_2" else in_classic)(interface, node)
            assert set(inputs) <= shown, kind
            assert set(schema["output_name"]) <= shown, kind
        assert not schemas
    assert interface.complaints == []


def side_by_side(interface):
    """A workflow of one node of each kind, unconnected, as the interface makes them."""
    nodes = interface.page.evaluate(
        """places => places.map(([kind, pos], index) => {
            const node = LiteGraph.createNode(kind)
            Object.assign(node, { id: index + 1, pos, size: [360, node.size[1]] })
            return node.serialize()
        })""",
        [[kind, PLACES.get(kind, [460, 0])] for kind in NODES.values()],
    )
    return {"nodes": nodes, "links": [], "groups": [], "last_node_id": len(nodes), "last_link_id": 0, "version": 0.4}


def in_classic(interface, node):
    """The names of sockets and widgets that the canvas draws inside a node."""
    return set(
        interface.page.evaluate(
            """id => {
                const node = app.graph.getNodeById(id)
                const inside = ([x, y]) => y >= 0 && y <= node.size[1] && x >= -20 && x <= node.size[0] + 20
                const sockets = (list, input) => (list ?? [])
                    .filter((s, i) => inside(node.getConnectionPos(input, i).map((p, axis) => p - node.pos[axis])))
                const widgets = (node.widgets ?? []).filter(w => !w.hidden && w.last_y > 0
                    && w.last_y + (w.computedHeight ?? 20) <= node.size[1])
                const inputs = sockets(node.inputs, true).filter(s => !s.widget)
                return [...inputs, ...sockets(node.outputs, false), ...widgets].map(s => s.name)
            }""",
            node,
        )
    )


def in_nodes_2(interface, node):
    """The texts that lie inside a node's element, a text field's label or placeholder among them."""
    return set(
        interface.page.evaluate(
            """id => {
                const element = document.querySelector(`[data-node-id="${id}"]`)
                const frame = element.getBoundingClientRect()
                const inside = e => {
                    const box = e.getBoundingClientRect()
                    return box.width && box.left >= frame.left - 12 && box.right <= frame.right + 12
                        && box.top >= frame.top && box.bottom <= frame.bottom + 1
                }
                const texts = e => [e.children.length ? '' : e.textContent.trim(), e.placeholder, e.ariaLabel]
                return [...element.querySelectorAll('*')].filter(inside).flatMap(texts).filter(Boolean)
            }""",
            str(node),
        )
    )


def test_a_workflow_of_an_earlier_version_keeps_its_values(interface):
    """The last two of its widgets were not there yet, nor those of later versions."""
    older = copy.deepcopy(SAVED)
    sampler = next(node for node in older["nodes"] if node["type"] == "VGTARSampler")
    sampler["widgets_values"] = sampler["widgets_values"][:-2]
    interface.load(older)
    values = interface.page.evaluate("app.graph._nodes.find(n => n.type === 'VGTARSampler').widgets.map(w => w.value)")
    assert values == [*sampler["widgets_values"], "uniform", 1, 1, True]
    assert interface.missing() == []
    interface.look(0.5)  # a Save Image that is out of sight has no picture yet
    interface.run()
    assert [picture.size for picture in interface.pictures()] == [(84, 56)] * 4
    assert interface.complaints == []


def test_a_dropped_picture_brings_back_its_graph_and_draws_itself_again(interface):
    interface.open_template("VGT-1-text-to-image")
    interface.set("VGTARSampler", prompt="a green triangle", seed=12345, tokens_per_step=16, cfg=3.0)
    shutil.rmtree(interface.host.base / "output" / "VGT", ignore_errors=True)
    sent = interface.graph()
    interface.run()
    (picture,) = interface.pictures()
    (file,) = (interface.host.base / "output" / "VGT").glob("text_to_image_*.png")
    interface.page.evaluate("app.graph.clear()")
    interface.host.free()

    interface.drop("shared.png", file.read_bytes())
    interface.wait_for_graph(sent)
    assert contents(interface.graph()) == contents(sent)
    interface.run()
    (again,) = interface.pictures()
    assert len(list(file.parent.glob("text_to_image_*.png"))) == 2
    assert same(picture, again)
    assert interface.complaints == []


def contents(graph):
    """What makes a graph draw what it draws."""
    nodes = {node["id"]: (node["type"], node.get("widgets_values")) for node in graph["nodes"]}
    return nodes, sorted(link[1:] for link in graph["links"])


def test_node_search_finds_each_node_by_its_name(interface):
    search = interface.page.locator(".comfy-vue-node-search-container")
    for title, kind in NODES.items():
        interface.page.evaluate("app.graph.clear()")
        # as by a hand: the interface counts two clicks of one and the same moment as one
        interface.page.mouse.dblclick(800, 600, delay=10)
        search.get_by_role("combobox").fill(title)
        first = search.locator(".p-autocomplete-option").first
        playwright.expect(first).to_contain_text(title, timeout=LONG)
        interface.screenshot(f"search_{kind}")
        first.click()
        interface.page.wait_for_function("() => app.graph._nodes.length === 1")
        assert interface.page.evaluate("app.graph._nodes.map(n => [n.type, n.title])") == [[kind, title]]
        search.wait_for(state="hidden")
    assert interface.complaints == []


def test_an_invalid_value_is_named_in_a_dialog_and_its_node_is_marked(interface):
    interface.open_template("VGT-1-text-to-image")
    sampler = interface.page.evaluate("app.graph._nodes.find(n => n.type === 'VGTARSampler').id")

    interface.set("VGTARSampler", cfg=99)  # refused by the host
    interface.run()
    assert "VGTARSampler:\n- Value 99.0 bigger than max of 30.0: cfg" in interface.dialog()
    assert interface.page.evaluate("Object.keys(app.lastNodeErrors)") == [str(sampler)]
    interface.screenshot("refused_value")
    interface.page.keyboard.press("Escape")
    interface.page.get_by_role("dialog").wait_for(state="hidden")
    assert any("400 (Bad Request)" in line for line in interface.complaints)
    assert all("400 (Bad Request)" in line or "PromptExecutionError" in line for line in interface.complaints)

    interface.complaints.clear()
    interface.set("VGTARSampler", cfg=4.5, width=2 * SIDE)  # refused by the node
    interface.run()
    assert f"The size is {2 * SIDE}x{SIDE}; this model draws at most {SIDE}x{SIDE}." in interface.dialog()
    assert interface.page.evaluate("app.lastExecutionError.node_id") == str(sampler)
    interface.screenshot("error_in_the_node")
    interface.page.keyboard.press("Escape")

    interface.set("VGTARSampler", width=SIDE)
    interface.run()
    assert len(interface.pictures()) == 1
    assert interface.complaints == []


def test_a_long_run_shows_the_picture_so_far_and_cancel_stops_it(interface):
    interface.open_template("VGT-1-text-to-image")
    interface.set("VGTARSampler", batch_size=8)  # or it may be over before the screenshot is
    watch_a_long_run(interface)
    assert interface.page.evaluate("Object.values(app.nodePreviewImages).some(urls => urls.length)")
    interface.screenshot("preview")
    cancel(interface)
    queue = interface.host.get("/queue")
    assert queue["queue_running"] == queue["queue_pending"] == []
    assert max(share for _, share in interface.page.evaluate("seen")) < 1

    interface.set("VGTARSampler", batch_size=1)
    interface.set("VGTFlowHeadSettings", steps=2)
    interface.run()
    assert [picture.size for picture in interface.pictures()] == PICTURES["VGT-1-text-to-image"]
    assert interface.complaints == []
