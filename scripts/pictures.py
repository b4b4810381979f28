"""Draw every picture that the pack shows, in a real ComfyUI with the bundled model: the thumbnails of workflows/, the
pictures of the help pages (web/docs/NODE/picture.jpg) and with them those of the README.

Run it after the bundled model or a workflow has changed:
`.venv/bin/python scripts/pictures.py [--only thumbnails|help|graph]`.
COMFYUI_PATH names the ComfyUI, as for scripts/dev.py. The pictures of graphs are screenshots, for which Playwright and
Chromium are needed; `python3 scripts/dev.py test --browser` installs both.
"""

import argparse
import copy
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image

import comfy_host
import thumbnails
import workflow_api

ROOT = Path(__file__).resolve().parent.parent
HELP = ROOT / "web" / "docs"
SIDE, GAP, BACKGROUND = 224, 8, (38, 38, 38)
SEED = 7
PROMPTS = [
    "a fox on a mint background",
    "a red apple to the left of a rocket",
    "three strawberries on a navy background",
    "a penguin",
]
STEPS = [2, 5, 10, 30]


def side_by_side(pictures):
    """Put pictures side by side in one, each as high as SIDE."""
    pictures = [picture.resize((picture.width * SIDE // picture.height, SIDE), Image.LANCZOS) for picture in pictures]
    sheet = Image.new("RGB", (sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1), SIDE), BACKGROUND)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=88, optimize=True)
    print(path.relative_to(ROOT), flush=True)


def read_api_graph(host, name):
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return workflow_api.to_api(workflow, host.object_info())


def draw_picture(host, graph, steps=None, **inputs):
    """Run the text-to-image graph and return what it draws with these inputs of its sampler and so many flow steps."""
    graph = copy.deepcopy(graph)
    sampler = next(node for node in graph.values() if node["class_type"] == "VGTARSampler")
    sampler["inputs"].update(seed=SEED, **inputs)
    if steps:
        graph["flow"] = {"class_type": "VGTFlowHeadSettings", "inputs": {"steps": steps}}
        sampler["inputs"]["flow_head"] = ["flow", 0]
    (picture,) = thumbnails.pictures_of(host, graph, host.run(graph, timeout=3600))
    return picture


def draw_help(host):
    graph = read_api_graph(host, "VGT-1-text-to-image")
    save(
        side_by_side([draw_picture(host, graph, prompt=prompt) for prompt in PROMPTS]),
        HELP / "VGTARSampler" / "picture.jpg",
    )
    save(
        side_by_side([draw_picture(host, graph, steps=steps) for steps in STEPS]),
        HELP / "VGTFlowHeadSettings" / "picture.jpg",
    )
    # a drawing there and back: on the left what VGT Encode gets, on the right what VGT Decode gives
    graph = read_api_graph(host, "VGT-6-reconstruct")
    (there_and_back,) = thumbnails.pictures_of(host, graph, host.run(graph, timeout=3600))
    for node in ("VGTEncode", "VGTDecode"):
        save(side_by_side([there_and_back]), HELP / node / "picture.jpg")


def draw_graphs(host):
    """Take screenshots: of the text-to-image graph when it has drawn, and of the template that is not run here."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from playwright.sync_api import sync_playwright

    from interface import FLAGS, Interface

    host.post("/settings/Comfy.TutorialCompleted", True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1120})
        page.set_default_timeout(300_000)
        interface = Interface(host, page)
        interface.open_template("VGT-1-text-to-image")
        interface.set("VGTARSampler", seed=SEED)
        interface.run()
        interface.pictures()
        page.wait_for_timeout(12_000)  # until the host's note that the run is over has gone
        picture = screenshot_of_graph(page, interface)
        save(picture.resize((1100, 834), Image.LANCZOS), HELP / "VGTLoader" / "picture.jpg")
        interface.open_template("VGT-9-published-weights-4-GB")
        page.wait_for_timeout(3000)
        picture = thumbnails.thumbnail([screenshot_of_graph(page, interface)])
        save(picture, ROOT / "workflows" / "VGT-9-published-weights-4-GB.jpg")
        browser.close()


def screenshot_of_graph(page, interface):
    """Take a screenshot of the canvas around a graph that is about 1260 wide and 920 high."""
    interface.look(0.95)
    page.wait_for_timeout(1500)
    area = {"x": 80, "y": 120, "width": 1240, "height": 940}
    return Image.open(io.BytesIO(page.screenshot(clip=area, animations="disabled"))).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description="Draw the pictures of templates, help pages and README.")
    parser.add_argument("--only", choices=["thumbnails", "help", "graph"], help="a part of them (default: all)")
    only = parser.parse_args().only
    comfyui = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".cache" / "ComfyUI")
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        (base / "input").mkdir()
        shutil.copy(comfyui / "input" / "example.png", base / "input")
        with comfy_host.Host(comfyui, base, sys.executable, log=base / "host.log") as host:
            if only in (None, "thumbnails"):
                thumbnails.draw(host, thumbnails.names())
            if only in (None, "help"):
                draw_help(host)
            if only in (None, "graph"):
                draw_graphs(host)


if __name__ == "__main__":
    main()
