"""The first ten minutes of a stranger, in the real interface. Screenshots first_*.png in output/screenshots."""

import shutil
import time

import pytest

import workflows
from interface import LONG, shown, visited_host

pytestmark = pytest.mark.browser

LINKS = [("VGTLoader", 0, "VGTARSampler", "model"), ("VGTARSampler", 0, "VGTDecode", "samples")]
LINKS += [("VGTLoader", 1, "VGTDecode", "vae"), ("VGTDecode", 0, "SaveImage", "images")]
TEXT = """() => app.graph._nodes.find(n => n.type === 'VGTARSampler').widgets
    .find(w => w.name === '$$node-text-preview')?.value"""


@pytest.fixture(scope="module")
def host(tmp_path_factory, tiny):
    with visited_host(tmp_path_factory.mktemp("first-home")) as running:
        shutil.copy(tiny, running.base / "models" / "vgt" / "words.safetensors")
        yield running


@pytest.fixture
def interface(host, chromium, request):
    with shown(host, chromium, f"first_{request.node.name}") as running:
        yield running


def place_four_nodes(interface):
    """An empty canvas, four nodes and four links, as a person drags them."""
    interface.page.evaluate(
        """links => {
            app.graph.clear()
            const nodes = {}
            for (const [index, type] of ['VGTLoader', 'VGTARSampler', 'VGTDecode', 'SaveImage'].entries()) {
                nodes[type] = LiteGraph.createNode(type)
                nodes[type].pos = [60 + 420 * index, 80]
                app.graph.add(nodes[type])
            }
            for (const [from, slot, to, input] of links)
                nodes[from].connect(slot, nodes[to], nodes[to].inputs.findIndex(i => i.name === input))
        }""",
        LINKS,
    )
    interface.look(0.7)


def outputs(interface):
    """What a run gave, as the host has it: Nodes 2.0 keeps its pictures elsewhere than the classic renderer."""
    deadline = time.monotonic() + LONG / 1000
    while len(history := interface.host.get("/history")) == interface.runs_before:
        assert time.monotonic() < deadline, "the run is not over"
        interface.page.wait_for_timeout(200)
    return workflows.pictures(interface.host, list(history.values())[-1]["outputs"])


@pytest.mark.parametrize("renderer", ["classic", "nodes_2"])
def test_four_nodes_by_hand_with_all_defaults_draw(interface, renderer):
    with interface.renderer(renderer):
        place_four_nodes(interface)
        interface.run()
        (picture,) = outputs(interface)
        assert picture.size == workflows.SQUARE
        interface.page.wait_for_timeout(1000)
        interface.screenshot(f"first_four_nodes_{renderer}")


def test_words_never_seen_stand_under_the_sampler(interface):
    place_four_nodes(interface)
    interface.set("VGTLoader", model="words.safetensors")
    interface.set("VGTARSampler", prompt="A Cat on top of a BLUE square")
    interface.run()
    outputs(interface)
    interface.page.wait_for_function(f"() => ({TEXT})()?.includes('never seen: cat')")
    interface.screenshot("first_never_seen")


def test_the_prompt_keeps_its_height_beside_a_preview(interface):
    """In the classic renderer, where a node's boxes share what its picture leaves."""
    place_four_nodes(interface)
    height = """() => {
        const widgets = app.graph._nodes.find(n => n.type === 'VGTARSampler').widgets
        return widgets.find(w => w.name === 'prompt').computedHeight
    }"""
    interface.page.wait_for_timeout(500)
    before = interface.page.evaluate(height)
    preview = "() => app.graph._nodes.find(n => n.type === 'VGTARSampler').imgs?.length"
    interface.page.evaluate(
        """() => {
            const flow = LiteGraph.createNode('VGTFlowHeadSettings')
            flow.pos = [60, 300]
            app.graph.add(flow)
            flow.widgets.find(w => w.name === 'steps').value = 1000
            const sampler = app.graph._nodes.find(n => n.type === 'VGTARSampler')
            flow.connect(0, sampler, sampler.inputs.findIndex(i => i.name === 'flow_head'))
        }"""
    )
    interface.run()
    interface.page.wait_for_function(preview)
    interface.page.wait_for_timeout(500)
    assert interface.page.evaluate(height) >= min(before, 80)
    interface.screenshot("first_prompt_beside_preview")
    outputs(interface)


def test_the_search_offers_the_sampler_where_the_host_has_aliases(interface, host):
    if "search_aliases" not in host.object_info("VGTARSampler"):
        pytest.skip("this host has no search aliases")
    search = interface.page.locator(".comfy-vue-node-search-container")
    interface.page.evaluate("app.graph.clear()")
    for words in ("text to image", "autoregressive", "inpaint"):
        interface.page.mouse.dblclick(800, 600, delay=10)
        search.get_by_role("combobox").fill(words)
        search.locator(".p-autocomplete-option", has_text="VGT AR Sampler").first.wait_for(timeout=LONG)
        interface.page.keyboard.press("Escape")
        search.wait_for(state="hidden")
