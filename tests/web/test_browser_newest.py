"""The pack in a newer interface than the host's own, which every user gets sooner or later: the version that
scripts/dev_setup.py names. The tests are those of test_browser.py that need nothing that an older host does not answer.
"""

import pytest
from test_browser import (  # noqa: F401 - pytest collects them here once more
    test_a_link_opens_a_template,
    test_a_workflow_of_an_earlier_version_keeps_its_values,
    test_every_node_shows_all_its_inputs_and_outputs,
    test_help_panel_shows_every_nodes_page,
    test_names_are_shown_in_the_interfaces_language,
)

import dev_setup
import workflows
from interface import NEWER_MESSAGES, shown, visited_host
from workflows import ALL

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    if not dev_setup.FRONTEND.is_dir():
        pytest.skip(
            f"{dev_setup.FRONTEND_PACKAGE} is not there: `python3 scripts/dev.py test --browser` gets it where it can"
        )
    with visited_host(tmp_path_factory.mktemp("comfy-home"), "--front-end-root", str(dev_setup.FRONTEND)) as running:
        yield running


@pytest.fixture
def interface(host, chromium, request):
    with shown(host, chromium, f"newest_{request.node.name}", NEWER_MESSAGES) as interface:
        yield interface


def test_it_is_the_newer_one(interface):
    assert interface.version() == tuple(int(part) for part in dev_setup.FRONTEND_PACKAGE.split("==")[1].split("."))


def test_every_template_opens_in_nodes_2(interface):
    with interface.renderer("nodes_2"):
        for name in ALL:
            interface.open_template(name)
            assert interface.missing() == []
            for node in workflows.read(name)["nodes"]:
                interface.page.locator(f'[data-node-id="{node["id"]}"]').first.wait_for()
            interface.page.wait_for_timeout(500)
            interface.screenshot(f"nodes_2_{name}")
    assert interface.complaints == []
