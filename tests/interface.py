"""ComfyUI's own interface in a real Chromium, as a person uses it. Screenshots are left in output/screenshots."""

import base64
import contextlib
import re
import time

import workflows
from host import ROOT, Host

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
    # questions to the Comfy registry and about models of ComfyUI's own templates, which a host with
    # --disable-api-nodes forbids its pages
    (r"(Connecting to|Fetch API cannot load) '?https://(api\.comfy\.org|huggingface\.co/Comfy-Org)/", r""),
    # a setting of its own that it stores before it knows it
    (r"^TypeError: Cannot read properties of undefined \(reading 'id'\)\n +at onChange .*\n +at Proxy\.set ", r""),
]
# What a newer interface asks an older host for in vain.
NEWER_MESSAGES = [
    (r"status of 404", r"/(api/jobs\?.*|templates/(index_logo|fuse_options)\.json|api/userdata\?dir=subgraphs&.*)$"),
    (r"Failed to fetch jobs: 404|^Error loading fuse options: ", r""),
    # code of its own viewers of 3-D models, which the same host forbids its pages to load
    (r"data:application/wasm", r"/vendor-three-"),
    (r"^(TypeError: )?Failed to fetch$", r"^$|/vendor-three-"),
]
NODES = {
    "VGT Loader": "VGTLoader",
    "VGT Encode": "VGTEncode",
    "VGT Decode": "VGTDecode",
    "VGT AR Sampler": "VGTARSampler",
    "Flow Head Settings": "VGTFlowHeadSettings",
    "VGT Region": "VGTRegion",
    "VGT Prompt Schedule": "VGTPromptSchedule",
    "VGT Load LoRA": "VGTLoadLoRA",
    "VGT Train LoRA": "VGTTrainLoRA",
}
LONG = 180_000  # ms, on a busy machine


@contextlib.contextmanager
def visited_host(home, *arguments, env=None):
    """A host with live previews on that has been visited before, so that it greets nobody."""
    with Host(home, args=["--preview-method", "auto", *arguments], env=env) as running:
        workflows.prepare(running)
        running.post("/settings/Comfy.TutorialCompleted", True)
        yield running


@contextlib.contextmanager
def shown(host, chromium, screenshot, known=()):
    """An Interface in a page of its own; a screenshot is taken at the end. known: see Interface."""
    page = chromium.new_page()
    page.set_default_timeout(LONG)
    page.goto(f"{host.address}/system_stats")
    page.evaluate("localStorage.clear()")  # what pages before this one left
    interface = Interface(host, page, known)
    yield interface
    interface.screenshot(re.sub(r"\W+", "_", screenshot).strip("_"))
    page.close()


class Interface:
    """ComfyUI's interface in a page: what a person does there, and what it complained of."""

    def __init__(self, host, page, known=()):
        """Open it; `known` are messages not to count as complaints, beside HOST_MESSAGES."""
        self.host, self.page = host, page
        self.complaints, self.known = [], [*HOST_MESSAGES, *known]
        page.on("pageerror", lambda error: self._note(str(error), ""))
        page.on("console", self._listen)
        self.visit()

    def visit(self, query=""):
        """Load the page, as on a first visit of the day."""
        page = self.page
        page.goto(f"{self.host.address}/{query}")
        # In the end the interface puts a workflow of its own on the canvas, whatever is there by then.
        page.wait_for_function(
            "() => window.app?.vueAppReady && app.extensionManager.workflow.activeWorkflow && app.graph._nodes.length"
        )
        page.wait_for_function("() => !app.extensionManager.spinner && app.isGraphReady !== false")
        page.wait_for_timeout(1000)

    def run_button(self):
        return self.page.get_by_role("button", name="Run", exact=True).first  # the second is a menu beside it

    def _listen(self, message):
        if message.type == "error":
            self._note(message.text, message.location.get("url", ""))

    def _note(self, text, address):
        if not any(re.search(one, text) and re.search(two, address) for one, two in self.known):
            self.complaints.append(f"{text[:1000]} ({address})")

    def screenshot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")

    def open_template(self, name):
        self.page.get_by_role("button", name="Templates", exact=True).click()
        self.page.get_by_text("ComfyUI-VGT", exact=True).click()
        self.page.get_by_test_id(f"template-workflow-{name}").click()
        self.wait_for_graph(workflows.read(name))

    def version(self):
        """The interface's version, as numbers."""
        return tuple(int(part) for part in self.page.evaluate("__COMFYUI_FRONTEND_VERSION__").split("."))

    def choose(self, **settings):
        """Store settings (Comfy_Locale="ja" is Comfy.Locale) and load the page anew."""
        for name, value in settings.items():
            self.host.post(f"/settings/{name.replace('_', '.')}", value)
        self.visit()

    @contextlib.contextmanager
    def renderer(self, name):
        """Show nodes as "classic" or "nodes_2" does."""
        switch = "on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
        self.page.evaluate(switch, name == "nodes_2")
        try:
            yield
        finally:
            self.page.evaluate(switch, False)

    def missing(self):
        """Types on the canvas that the interface does not know."""
        return self.page.evaluate("app.graph._nodes.map(n => n.type).filter(t => !LiteGraph.registered_node_types[t])")

    def load(self, workflow):
        """Put a saved workflow on the canvas."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.wait_for_graph(workflow)

    def place(self, kind):
        """A node of a kind alone on the canvas."""
        self.page.evaluate(
            "kind => { app.graph.clear(); app.graph.add(LiteGraph.createNode(kind)) }",
            kind,
        )

    def look(self, scale):
        """See the canvas from its origin on at this scale."""
        self.page.evaluate(
            "scale => { Object.assign(app.canvas.ds, {scale, offset: [100, 140]}); app.canvas.setDirty(true, true) }",
            scale,
        )

    def select(self, kind):
        self.page.evaluate("kind => app.canvas.selectNode(app.graph._nodes.find(n => n.type === kind))", kind)

    def bring_down(self, kind):
        """Move the canvas until the tools above a node no longer lie under the tabs."""
        self.page.evaluate(
            """kind => {
                const [x, y] = app.graph._nodes.find(n => n.type === kind).pos
                Object.assign(app.canvas.ds, {scale: 0.6, offset: [1000 - x, 500 - y]})
                app.canvas.setDirty(true, true)
            }""",
            kind,
        )

    def out_of_place(self, kind):
        """Nodes of a kind that lie across the border of a group, or not wholly on the screen: their ids."""
        return self.page.evaluate(
            """kind => {
                const {scale, offset} = app.canvas.ds
                const {left, top} = app.canvas.canvas.getBoundingClientRect()
                const inside = ([x, y, right, bottom], frame) =>
                    x >= frame[0] && y >= frame[1] && right <= frame[2] && bottom <= frame[3]
                const apart = ([x, y, right, bottom], frame) =>
                    x >= frame[2] || y >= frame[3] || right <= frame[0] || bottom <= frame[1]
                const start = [-left / scale - offset[0], -top / scale - offset[1]]
                const screen = [...start, start[0] + innerWidth / scale, start[1] + innerHeight / scale]
                const groups = app.graph._groups.map(({pos, size}) => [...pos, pos[0] + size[0], pos[1] + size[1]])
                const well = ({pos: [x, y], size: [width, height]}) => {
                    const box = [x, y - LiteGraph.NODE_TITLE_HEIGHT, x + width, y + height]
                    return inside(box, screen) && groups.every(group => inside(box, group) || apart(box, group))
                }
                return app.graph._nodes.filter(n => n.type === kind && !well(n)).map(n => n.id)
            }""",
            kind,
        )

    def help(self, kind):
        """Open the help panel on the first node of a kind; returns it."""
        panel = self.page.locator(".node-help-content")
        # On the left it would lie over nodes; newer interfaces have it on the right, where it follows the selection.
        self.page.evaluate("app.extensionManager.sidebarTab.activeSidebarTabId = null")
        self.page.wait_for_timeout(500)
        self.select(kind)
        self.bring_down(kind)
        self.page.wait_for_timeout(500)
        if not panel.is_visible():
            self.page.get_by_test_id("info-button").click()
        title = next(title for title, one in NODES.items() if one == kind)
        panel.locator("h1", has_text=title).wait_for()
        return panel

    def wait_for_graph(self, workflow):
        """Wait until the graph on the canvas is this one, by its nodes."""
        ids = sorted(str(node["id"]) for node in workflow["nodes"])  # newer interfaces have strings
        shown = "ids => JSON.stringify(app.graph._nodes.map(n => String(n.id)).sort()) === JSON.stringify(ids)"
        self.page.wait_for_function(shown, arg=ids)

    def search(self, words, title):
        """Double-click the canvas, type the words, wait until a node of this title is offered, and leave."""
        page = self.page
        page.mouse.dblclick(800, 600, delay=10)
        if self.version() < (1, 47):
            container = page.locator(".comfy-vue-node-search-container")
            box, offered = container.get_by_role("combobox"), container.locator(".p-autocomplete-option")
        else:
            box = page.get_by_placeholder("Add a node...")
            offered = page.get_by_role("dialog").get_by_text(title, exact=True)
        box.fill(words)
        offered.filter(has_text=title).first.wait_for()
        page.keyboard.press("Escape")
        box.wait_for(state="hidden")

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
        """Press Run; from then on window.seen collects the progress that nodes show, window.previews their types."""
        self.page.evaluate(
            """() => {
                window.seen = []
                window.previews = []
                window.watch || app.api.addEventListener('b_preview_with_metadata', ({detail}) => {
                    const node = app.graph.getNodeById(detail.displayNodeId ?? detail.nodeId)
                    previews.push(node.type)
                })
                window.watch ??= setInterval(() => {
                    for (const n of app.graph._nodes) if (n.progress) seen.push([n.type, n.progress])
                }, 10)
            }"""
        )
        self.runs_before = len(self.host.get("/history"))
        self.run_button().click()

    def pictures(self):
        """Wait until the run is over and every Save Image that is not bypassed shows its pictures; return them, in the
        order of the nodes.

        They are those of this run: what the canvas shows may still be another's.
        """
        deadline = time.monotonic() + LONG / 1000
        while len(history := self.host.get("/history")) == self.runs_before:
            assert time.monotonic() < deadline, "the run is not over"
            self.page.wait_for_timeout(200)
        outputs = list(history.values())[-1]["outputs"]
        self.page.wait_for_function(
            """outputs => app.graph._nodes.filter(n => n.type === 'SaveImage' && n.mode === 0).every(n => {
                const names = images => JSON.stringify(images?.map(i => i.filename))
                return names(app.nodeOutputs[n.id]?.images) === names(outputs[n.id]?.images)
                    && n.imgs?.length && n.imgs.every(i => i.complete && i.naturalWidth)
            })""",
            arg=outputs,
        )
        return workflows.pictures(self.host, outputs)

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
