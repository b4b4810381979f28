import os
import shutil
import signal

import pytest

# The tests' models are tiny: threads cost them more than they give, a hundred times more on a busy machine. torch reads
# this when it is imported, here and in the hosts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image

import bundled
import vgt
from checkpoints import make_folder
from graphs import INTERN, QWEN, install_models
from host import Host
from hub_clients import Clients
from hub_server import HubServer, published_repositories
from interface import FLAGS
from recorded import FAMILIES


class RootIsNoPackage:
    """The root's __init__.py is for ComfyUI alone: without this, pytest takes the root for a package and imports it.

    A plugin and not a hook of this file, since such a hook would be asked about this folder only.
    """

    def pytest_collect_directory(self, path, parent):
        if path == parent.config.rootpath:
            return pytest.Dir.from_parent(parent, path=path)


def pytest_configure(config):
    config.pluginmanager.register(RootIsNoPackage())
    # A killed run still ends the hosts it started.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))


def pytest_collection_modifyitems(items):
    for item in items:
        if "host" in item.fixturenames:
            item.add_marker("host")


@pytest.fixture(scope="session")
def bundled_model():
    """The bundled model's file."""
    return bundled.PATH


@pytest.fixture
def hub():
    """A local hub with the published repositories."""
    with HubServer(published_repositories()) as server:
        yield server


@pytest.fixture
def clients(hub, tmp_path):
    """Its clients."""
    return Clients(tmp_path, hub.url)


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """One running ComfyUI with this pack for all tests that need one."""
    with Host(tmp_path_factory.mktemp("comfy-home")) as running:
        yield running


@pytest.fixture(scope="module")
def models(host):
    """The folder of the running ComfyUI that holds the fixtures' models."""
    return install_models(host)


@pytest.fixture(scope="module")
def python_models(models):
    return {name: vgt.load(models / name) for name in (INTERN, QWEN)}


@pytest.fixture(scope="module")
def photo(host, models):
    """Name of an image of 112x84 random pixels in the host's input folder, and its pixels [1, 3, 84, 112]."""
    pixels = torch.randint(0, 256, (84, 112, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = models / "photo.png"
    Image.fromarray(pixels.numpy()).save(path)
    name = host.upload_image(path)
    path.unlink()
    return name, pixels.movedim(-1, 0)[None].float() / 255


@pytest.fixture(scope="session")
def chromium():
    """A real Chromium, the system's or Playwright's own: one context, so that all pages share a cache."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as driver:
        own = shutil.which("chromium")
        try:
            browser = driver.chromium.launch(executable_path=own, args=FLAGS)
        except playwright.Error as error:
            if own or "Executable doesn't exist" not in str(error):
                raise
            pytest.skip("there is no Chromium: `python3 scripts/dev.py test --browser` installs it where it can")
        yield browser.new_context(viewport={"width": 1600, "height": 900})
        browser.close()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path):
    """The published layout without weights."""
    return make_folder(family, tmp_path / "model")
