"""workflows/api: what scripts send to POST /prompt."""

import json

import export_api
import workflows


def test_exports_are_up_to_date(host):
    saved = {path.name: path.read_text(encoding="utf-8") for path in export_api.FOLDER.glob("*.json")}
    assert saved == export_api.exports(host.object_info()), "run scripts/export_api.py"


def test_the_template_browser_does_not_list_them(host):
    offered = host.get("/workflow_templates")["ComfyUI-VGT"]
    assert sorted(offered) == sorted(path.stem for path in workflows.FOLDER.glob("*.json"))


def test_an_export_runs_as_it_is(host):
    workflows.prepare(host)
    graph = json.loads((export_api.FOLDER / "VGT-1-text-to-image.json").read_text(encoding="utf-8"))
    assert workflows.pictures(host, host.run(graph))
