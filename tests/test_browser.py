"""The pack in ComfyUI's own interface, driven in a real Chromium. Screenshots are left in output/screenshots.

Skipped only where there is no Chromium or no Playwright; `python3 scripts/dev.py test --browser` installs both.
"""

import base64
import re
import shutil

import pytest

import workflows
from host import ROOT, Host
from workflows import PICTURES, same

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.browser

SCREENSHOTS = ROOT / "output" / "screenshots"
# Chromium in a container, and quiet where there is no network.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# What the interface itself complains of, without any node pack: (text, address) of the message.
HOST_MESSAGES = [
    # files that a new user folder does not hold
    (r"status of 404", r"/(favicon\.ico|user\.css|api/userdata/user\.css|api/userdata/comfy\.templates\.json)$"),
    (r"status of 404", r"/api/userdata\?dir=(workflows|subgraphs%2F)&"),
    # the help page in English, which lies where all other languages fall back to
    (r"status of 404", r"/docs/\w+/en\.md$"),
    # questions to the Comfy registry, which a host with --disable-api-nodes forbids its pages
    (r"^Connecting to 'https://api\.comfy\.org/", r""),
    # a setting of its own that it stores before it knows it
    (r"^TypeError: Cannot read properties of undefined \(reading 'id'\)\n +at onChange .*\n +at Proxy\.set ", r""),
]
NODES = {
    "VGT Loader": "VGTLoader",
    "VGT Encode": "VGTEncode",
    "VGT Decode": "VGTDecode",
    "VGT AR Sampler": "VGTARSampler",
    "Flow Head Settings": "VGTFlowHeadSettings",
}
LONG = 300_000  # ms, on a busy machine


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A host of this module's own, with live previews on, that has been visited before."""
    with Host(tmp_path_factory.mktemp("comfy-home"), args=["--preview-method", "auto"]) as running:
        workflows.prepare(running)
        running.post("/settings/Comfy.TutorialCompleted", True)
        yield running


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        own = shutil.which("chromium")
        try:
            browser = driver.chromium.launch(executable_path=own, args=FLAGS)
        except playwright.Error as error:
            if own or "Executable doesn't exist" not in str(error):
                raise
            pytest.skip("there is no Chromium")
        yield browser
        browser.close()


@pytest.fixture
def interface(host, chromium, request):
    page = chromium.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(LONG)
    interface = Interface(host, page)
    yield interface
    interface.screenshot(re.sub(r"\W+", "_", request.node.name).strip("_"))
    page.close()


class Interface:
    """ComfyUI's interface in a page: what a person does there, and what it complained of."""

    def __init__(self, host, page):
        self.host, self.page = host, page
        self.complaints = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._listen)
        page.goto(host.address)
        page.wait_for_function("() => Boolean(window.app?.graph?._nodes.length)")
        page.get_by_role("button", name="Run", exact=True).wait_for()

    def _listen(self, message):
        text, address = message.text, message.location.get("url", "")
        known = any(re.search(one, text) and re.search(two, address) for one, two in HOST_MESSAGES)
        if message.type == "error" and not known:
            self.complaints.append(f"{text} ({address})")

    def screenshot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")

    def open_template(self, name):
        self.page.get_by_role("button", name="Templates", exact=True).click()
        self.page.get_by_text("ComfyUI-VGT", exact=True).click()
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        self.wait_for_graph(workflows.read(name))

    def wait_for_graph(self, workflow):
        """Wait until the graph on the canvas is this one, by its nodes."""
        ids = sorted(node["id"] for node in workflow["nodes"])
        shown = "ids => JSON.stringify(app.graph._nodes.map(n => n.id).sort((a, b) => a - b)) === JSON.stringify(ids)"
        self.page.wait_for_function(shown, arg=ids)

    def graph(self):
        return self.page.evaluate("app.graph.serialize()")

    def set(self, kind, **values):
        """Set widgets of the first node of a kind."""
        for name, value in values.items():
            self.page.evaluate(
                """([kind, name, value]) => {
                    const node = app.graph._nodes.find(n => n.type === kind)
                    node.widgets.find(w => w.name === name).value = value
                }""",
                [kind, name, value],
            )

    def run(self):
        """Press Run; from then on window.seen collects the progress that nodes show."""
        self.page.evaluate(
            """() => {
                window.seen = []
                window.watch ??= setInterval(() => {
                    for (const n of app.graph._nodes) if (n.progress) seen.push([n.type, n.progress])
                }, 10)
            }"""
        )
        self.page.get_by_role("button", name="Run", exact=True).click()

    def pictures(self):
        """Wait until every Save Image node shows its pictures; return them, in the order of the nodes."""
        self.page.wait_for_function(
            """() => app.graph._nodes.filter(n => n.type === 'SaveImage')
                .every(n => n.imgs?.length && n.imgs.every(i => i.complete && i.naturalWidth))"""
        )
        return workflows.pictures(self.host, self.page.evaluate("app.nodeOutputs"))

    def drop(self, name, content):
        """Drop a PNG file on the canvas."""
        self.page.evaluate(
            """([name, content]) => {
                const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0))
                const dataTransfer = new DataTransfer()
                dataTransfer.items.add(new File([bytes], name, { type: 'image/png' }))
                const options = { dataTransfer, bubbles: true, cancelable: true, clientX: 800, clientY: 600 }
                document.elementFromPoint(800, 600).dispatchEvent(new DragEvent('drop', options))
            }""",
            [name, base64.b64encode(content).decode()],
        )

    def dialog(self):
        """The text of the dialog that opens."""
        dialog = self.page.get_by_role("dialog")
        dialog.wait_for()
        return dialog.inner_text()


@pytest.mark.parametrize("name", PICTURES)
def test_template_opens_runs_and_ends_in_its_pictures(interface, name):
    expected = workflows.pictures(interface.host, interface.host.run(workflows.to_api(interface.host, name)))
    interface.host.free()  # or the host would show these again
    interface.open_template(name)
    assert interface.page.get_by_role("dialog").count() == 0  # that of missing nodes or models
    assert interface.page.evaluate("app.graph._nodes.filter(n => !LiteGraph.registered_node_types[n.type])") == []
    interface.screenshot(f"opened_{name}")
    interface.run()
    pictures = interface.pictures()
    assert [picture.size for picture in pictures] == PICTURES[name]
    assert all(same(*pair) for pair in zip(pictures, expected))
    if name != "reconstruct":
        assert any(kind == "VGTARSampler" and 0 < share < 1 for kind, share in interface.page.evaluate("seen"))
    assert interface.complaints == []


def test_a_dropped_picture_brings_back_its_graph_and_draws_itself_again(interface):
    interface.open_template("text_to_image")
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


@pytest.mark.parametrize("title", NODES)
def test_node_search_finds_each_node_by_its_name(interface, title):
    interface.page.evaluate("app.graph.clear()")
    interface.page.mouse.dblclick(800, 600)
    search = interface.page.locator(".comfy-vue-node-search-container")
    search.get_by_role("combobox").fill(title)
    first = search.locator(".p-autocomplete-option").first
    playwright.expect(first).to_contain_text(title, timeout=LONG)
    interface.screenshot(f"search_{NODES[title]}")
    first.click()
    interface.page.wait_for_function("() => app.graph._nodes.length === 1")
    assert interface.page.evaluate("app.graph._nodes.map(n => [n.type, n.title])") == [[NODES[title], title]]
    assert interface.complaints == []


def test_an_invalid_value_is_named_in_a_dialog_and_its_node_is_marked(interface):
    interface.open_template("text_to_image")
    sampler = interface.page.evaluate("app.graph._nodes.find(n => n.type === 'VGTARSampler').id")

    interface.set("VGTARSampler", cfg=99)  # refused by the host
    interface.run()
    assert "VGTARSampler:\n- Value 99.0 bigger than max of 30.0: cfg" in interface.dialog()
    assert interface.page.evaluate("Object.keys(app.lastNodeErrors)") == [str(sampler)]
    interface.screenshot("refused_value")
    interface.page.keyboard.press("Escape")
    interface.page.get_by_role("dialog").wait_for(state="hidden")
    assert all("400 (Bad Request)" in line or "PromptExecutionError" in line for line in interface.complaints)

    interface.complaints.clear()
    interface.set("VGTARSampler", cfg=4.5, width=230)  # refused by the node
    interface.run()
    assert "The size is 230x112; width and height must be multiples of 28." in interface.dialog()
    assert interface.page.evaluate("app.lastExecutionError.node_id") == str(sampler)
    interface.screenshot("error_in_the_node")
    interface.page.keyboard.press("Escape")

    interface.set("VGTARSampler", width=112)
    interface.run()
    assert len(interface.pictures()) == 1
    assert interface.complaints == []


def test_a_long_run_shows_the_picture_so_far_and_cancel_stops_it(interface):
    interface.open_template("text_to_image")
    interface.page.evaluate(
        """() => {
            const settings = LiteGraph.createNode('VGTFlowHeadSettings')
            const sampler = app.graph._nodes.find(n => n.type === 'VGTARSampler')
            app.graph.add(settings)
            settings.connect(0, sampler, sampler.inputs.findIndex(i => i.name === 'flow_head'))
        }"""
    )
    interface.set("VGTFlowHeadSettings", steps=1000)
    interface.run()
    interface.page.wait_for_function("Object.values(app.nodePreviewImages).some(urls => urls.length)")
    interface.page.wait_for_timeout(500)  # for the screenshot to show it
    interface.screenshot("preview")
    interface.page.get_by_role("button", name="Cancel current run").click()
    playwright.expect(interface.page.get_by_role("button", name="Cancel current run")).to_be_disabled(timeout=LONG)
    queue = interface.host.get("/queue")
    assert queue["queue_running"] == queue["queue_pending"] == []
    (record,) = interface.host.get("/history?max_items=1").values()
    assert "execution_interrupted" in dict(record["status"]["messages"])
    assert max(share for _, share in interface.page.evaluate("seen")) < 1

    interface.set("VGTFlowHeadSettings", steps=2)
    interface.run()
    assert [picture.size for picture in interface.pictures()] == PICTURES["text_to_image"]
    assert interface.complaints == []
