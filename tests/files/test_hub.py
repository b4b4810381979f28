"""Downloads of the published models from a local hub. Each client is a process: the hub's address is read at import."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hub_server import FIXTURES, REVISION, HubServer, published_repositories
from vgt.files import hub as vgt_hub

ROOT = Path(__file__).resolve().parents[2]
SFT = "VGT-InternVL3-1.6B-SFT"
WEIGHTS = "hustvl/vgt_internvl3_1_6B_sft/iter_5000.pth"
SIZE = (FIXTURES / "internvl3" / "iter_5000.pth").stat().st_size
LOST = 2**16 + 2**14
"""Bytes that a broken connection may cost at the most: a chunk, and the piece on its way."""

CLIENT = """
import json, shutil, sys, threading, time
from pathlib import Path
from vgt.files import hub, transfer
transfer.BACKOFF = (0.05,) * 4
folder, seen, calls = Path("models"), [], []
def progress(*now): seen.append(now)
class Stop(Exception): pass
def convert(source, out):
    calls.append(sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()))
    weights = next(p for p in source.iterdir() if p.suffix == ".pth")
    out.write_bytes(weights.read_bytes())
def obtain(name, **more): return hub.obtain(name, folder, more.pop("convert", convert), progress, **more)
def result(**values): print("RESULT", json.dumps(values))
def error(call, *args, **more):
    try: call(*args, **more)
    except hub.HubError as error: result(error=type(error).__name__, message=str(error))
"""


class Clients:
    """Runs clients in a folder of its own, which holds their models/ and their hub cache."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url
        self.models = folder / "models"
        self.cache = folder / "hf" / "hub"

    def start(self, code, **env):
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
        }
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT + textwrap.dedent(code)],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": path, **hub, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-3000:]
        return json.loads(out.rpartition("RESULT ")[2])

    def run(self, code, **env):
        """What the client gave to `result`."""
        return self.finish(self.start(code, **env))


@pytest.fixture
def hub():
    with HubServer(published_repositories()) as server:
        yield server


@pytest.fixture
def clients(hub, tmp_path):
    return Clients(tmp_path, hub.url)


def left(folder):
    """Files below a folder, lock files aside."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_import_is_quiet(hub, clients):
    assert clients.run("result(loaded='huggingface_hub' in sys.modules)") == {"loaded": False}
    assert hub.requests == []


@pytest.mark.parametrize("name", vgt_hub.PUBLISHED)
def test_exactly_the_needed_files(hub, clients, name):
    got = clients.run(f"""
        path = hub.download({name!r}, folder / "x", progress)
        again = len(seen)
        hub.download({name!r}, folder / "x", progress)
        result(path=str(path), seen=seen, again=len(seen) - again)
    """)
    model = vgt_hub.PUBLISHED[name]
    (weights,) = [n for n in hub.repositories[model.repository] if n.endswith(".pth") and n == (model.weights or n)]
    tokenizer = ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"] if model.tokenizer else []
    wanted = {f"base/{n}": f"{model.base}/{n}" for n in ["config.json", *tokenizer]}
    wanted["dc_ae/config.json"] = f"{vgt_hub.DC_AE}/config.json"
    wanted[weights] = f"{model.repository}/{weights}"
    assert hub.downloaded() == sorted(wanted.values())
    assert left(clients.models / "x") == sorted(wanted)
    sizes = 0
    for place, source in wanted.items():
        content = hub.repositories[source.rpartition("/")[0]][source.rpartition("/")[2]]
        assert (clients.models / "x" / place).read_bytes() == content
        assert hub.sent[source] == len(content)
        sizes += len(content)
    assert Path(got["path"]) == Path("models/x")
    done = [now[0] for now in got["seen"]]
    assert done == sorted(done) and got["seen"][-1][:2] == [sizes, sizes] and got["again"] == 0


def test_converted_once_and_nothing_left(hub, clients):
    got = clients.run(f"""
        path = obtain({SFT!r})
        obtain({SFT!r})
        result(path=str(path), calls=calls)
    """)
    assert got["path"] == str(Path("models") / f"{SFT}.safetensors")
    assert (clients.folder / got["path"]).stat().st_size == SIZE
    assert (
        len(got["calls"]) == 1 and got["calls"][0][0] == "base/config.json" and got["calls"][0][-1] == "iter_5000.pth"
    )
    assert left(clients.models) == [f"{SFT}.safetensors"]
    assert len(hub.ranges(WEIGHTS)) == 1


@pytest.mark.parametrize("family, name", [("internvl3", "VGT-AE-InternVL3"), ("qwen2_5_vl", "VGT-Qwen2.5-VL-2B-SFT")])
def test_the_real_conversion(hub, clients, family, name):
    got = clients.run(f"""
        from vgt.files.reading import convert
        path = hub.obtain({name!r}, folder, convert)
        import vgt
        result(latent=vgt.load(path).encode(__import__("torch").rand(1, 3, 56, 56)).shape)
    """)
    assert got == {"latent": [1, 32, 2, 2]}
    assert left(clients.models) == [f"{name}.safetensors"]


def test_load_by_published_name(hub, clients):
    code = f"""
        import vgt
        model = vgt.load({SFT!r})
        (image,) = model.draw("a cat", height=56, width=28, flow=vgt.FlowSettings(steps=2))
        result(size=image.size)
    """
    home = {"VGT_HOME": str(clients.folder / "home")}
    assert clients.run(code, **home) == {"size": [28, 56]}
    assert left(clients.folder / "home") == [f"{SFT}.safetensors"]
    hub.forget()
    assert clients.run(code, **home, HF_HUB_OFFLINE="1") == {"size": [28, 56]}
    assert hub.requests == []


def test_the_command_line_takes_a_published_name(hub, clients):
    code = f"""
        from vgt.__main__ import main
        size = ["--width", "28", "--height", "28"]
        result(status=main(["generate", {SFT!r}, "a cat", "cat.png", "--steps", "2", *size]))
    """
    cache = {"XDG_CACHE_HOME": str(clients.folder / "cache")}
    process = clients.start(code, **cache, HF_HUB_OFFLINE="1")
    _, said = process.communicate(timeout=120)
    assert said.splitlines()[-4].startswith(f"vgt: {SFT}: ") and "Traceback" not in said
    assert str(clients.folder / "cache" / "vgt" / SFT / "base") in said  # where to put what was fetched elsewhere
    assert clients.run(code, **cache) == {"status": 0}
    assert left(clients.folder / "cache") == [f"vgt/{SFT}.safetensors"]
    assert (clients.folder / "cat.png").is_file()


def test_a_file_of_a_published_name_is_that_file(hub, clients):
    place_by_hand(clients.folder / SFT, "vgt_ae_internvl3.pth", "base", "dc_ae")
    got = clients.run(f"import vgt; result(tokenizer_only=vgt.load({SFT!r}).generator is None)", VGT_HOME="home")
    assert got == {"tokenizer_only": True} and hub.requests == []


def test_broken_connections_are_resumed(hub, clients):
    hub.break_after["iter_5000.pth"] = [300_000, 400_000, 0, 100_000]
    got = clients.run(f"obtain({SFT!r}); result(seen=seen)")
    ranges = hub.ranges(WEIGHTS)
    assert len(ranges) == 5 and ranges[0] is None
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in ranges[1:]]
    assert 300_000 - LOST <= starts[0] <= 300_000 and starts == sorted(starts)
    assert SIZE <= hub.sent[WEIGHTS] <= SIZE + 4 * LOST
    assert (clients.models / f"{SFT}.safetensors").read_bytes() == hub.repositories[WEIGHTS.rpartition("/")[0]][
        "iter_5000.pth"
    ]
    assert got["seen"][-1][0] == got["seen"][-1][1]


def test_a_server_that_does_not_resume(hub, clients):
    hub.break_after["iter_5000.pth"] = [300_000]
    hub.resumes = False
    clients.run(f"obtain({SFT!r}); result()")
    assert (clients.models / f"{SFT}.safetensors").stat().st_size == SIZE


def test_gives_up_and_continues_later(hub, clients):
    hub.break_after["iter_5000.pth"] = [500_000] + [0] * 4
    got = clients.run(f"error(obtain, {SFT!r})")
    assert got["error"] == "HubError" and WEIGHTS in got["message"] and "run again" in got["message"]
    assert not (clients.models / f"{SFT}.safetensors").exists()
    hub.forget()
    clients.run(f"obtain({SFT!r}); result()")
    assert hub.ranges(WEIGHTS) != [None] and hub.sent[WEIGHTS] <= SIZE - 500_000 + LOST


def test_passing_server_errors(hub, clients):
    hub.statuses = {"hustvl/vgt_internvl3_1_6B_sft": [503, 429], "iter_5000.pth": [500]}
    clients.run(f"obtain({SFT!r}); result()")
    hub.statuses = {"hustvl/vgt_internvl3_1_6B_pretrain": [503] * 9}
    got = clients.run("error(obtain, 'VGT-InternVL3-1.6B-Pretrain')")
    assert "hustvl/vgt_internvl3_1_6B_pretrain" in got["message"] and "503" in got["message"]


@pytest.mark.parametrize("how", ["slow", "stalled"])
def test_cancel(hub, clients, how):
    if how == "slow":
        hub.delay = 0.05
    else:
        hub.stalled = {"iter_5000.pth"}
    got = clients.run(f"""
        def check():
            checks.append(time.monotonic())
            if seen and seen[-1][0] > 500_000: time.sleep(0.3 * {how == "stalled"}); raise Stop
        checks = []
        try: obtain({SFT!r}, check=check)
        except Stop: pass
        late = time.monotonic() - checks[-1]
        files = [p.stat().st_size for p in folder.rglob("*.incomplete")]
        time.sleep(0.5)
        later = [p.stat().st_size for p in folder.rglob("*.incomplete")]
        result(late=late, files=files, later=later)
    """)
    assert got["late"] < 30  # a hub that has stalled goes on after 60
    assert got["files"] == got["later"] and 300_000 < got["files"][0] < SIZE
    hub.delay, hub.stalled = 0, set()
    hub.forget()
    clients.run(f"obtain({SFT!r}); result()")
    assert hub.sent[WEIGHTS] == SIZE - got["files"][0]
    assert left(clients.models) == [f"{SFT}.safetensors"]


def test_progress_may_cancel_too(hub, clients):
    got = clients.run(f"""
        def progress(*now): raise Stop
        try: obtain({SFT!r})
        except Stop: result(stopped=True)
    """)
    assert got == {"stopped": True}


def test_wrong_size(hub, clients):
    hub.other_size = {"iter_5000.pth": 1_000_000}
    got = clients.run(f"error(obtain, {SFT!r})")
    assert got["error"] == "BadFile"
    assert WEIGHTS in got["message"] and "1000000" in got["message"] and str(SIZE) in got["message"]


def test_wrong_bytes(hub, clients):
    hub.corrupt = {"iter_5000.pth"}
    got = clients.run(f"error(obtain, {SFT!r})")
    assert got["error"] == "BadFile" and WEIGHTS in got["message"] and "sha256" in got["message"]
    assert not [name for name in left(clients.models) if "iter_5000" in name]


def test_half_written_files_of_an_earlier_crash(hub, clients):
    hub.break_after["iter_5000.pth"] = [500_000] + [0] * 4
    clients.run(f"error(obtain, {SFT!r})")
    (partial,) = clients.models.rglob("*.incomplete")
    partial.write_bytes(bytes(partial.stat().st_size))  # as a power cut leaves it
    converted = clients.models / ".download" / SFT / "converted"
    converted.mkdir()
    (converted / f"{SFT}.safetensors.17.part").write_bytes(b"half a conversion")
    hub.forget()
    clients.run(f"obtain({SFT!r}); result()")
    assert len(hub.ranges(WEIGHTS)) == 2 and hub.ranges(WEIGHTS)[1] is None
    assert left(clients.models) == [f"{SFT}.safetensors"]
    assert (clients.models / f"{SFT}.safetensors").stat().st_size == SIZE


def test_disk_too_small(hub, clients):
    got = clients.run(f"""
        hub.shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**10, 10**10 - 10**8, 10**8)
        error(obtain, {SFT!r})
    """)
    assert got["error"] == "DiskFull" and "0.5 GB" in got["message"] and "0.1 GB are free" in got["message"]
    assert hub.downloaded() == []


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are Unix")
def test_disk_full_while_downloading(hub, clients):
    got = clients.run(f"""
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))
        error(obtain, {SFT!r})
    """)
    assert got["error"] == "DiskFull" and "iter_5000.pth" in got["message"]
    (partial,) = clients.models.rglob("*.incomplete")
    assert partial.stat().st_size == 1_000_000
    hub.forget()
    clients.run(f"obtain({SFT!r}); result()")
    assert hub.ranges(WEIGHTS) == ["bytes=1000000-"]


def test_two_at_once(hub, clients):
    hub.delay = 0.01
    both = [clients.start(f"obtain({SFT!r}); result(calls=len(calls))") for _ in range(2)]
    assert sorted(clients.finish(process)["calls"] for process in both) == [0, 1]
    assert hub.ranges(WEIGHTS) == [None] and hub.sent[WEIGHTS] == SIZE


def test_waiting_for_the_other_can_be_cancelled(hub, clients):
    got = clients.run(f"""
        begun, cancelled, asked = threading.Event(), threading.Event(), []
        def held(*files): begun.set(); cancelled.wait(); convert(*files)
        def first(): hub.obtain({SFT!r}, folder, held)
        def check():
            asked.append(1)
            if len(asked) == 3: raise Stop
        thread = threading.Thread(target=first); thread.start()
        begun.wait()
        try: obtain({SFT!r}, check=check)
        except Stop: pass
        before = len(calls)
        cancelled.set()
        thread.join()
        result(before=before, calls=len(calls))
    """)
    assert got == {"before": 0, "calls": 1} and hub.sent[WEIGHTS] == SIZE


def test_a_failed_conversion_leaves_nothing_and_downloads_nothing_again(hub, clients):
    got = clients.run(f"""
        def fail(source, out):
            out.write_bytes(b"half")
            raise ValueError("no")
        try: obtain({SFT!r}, convert=fail)
        except ValueError: result(there=[p.name for p in folder.rglob("*.safetensors")])
    """)
    assert got == {"there": []}
    hub.forget()
    clients.run(f"obtain({SFT!r}); result()", HF_HUB_OFFLINE="1")
    assert hub.requests == [] and left(clients.models) == [f"{SFT}.safetensors"]


@pytest.mark.parametrize("how", ["OSError(28, 'full')", "RuntimeError('I/O error: No space left on device')"])
def test_disk_full_while_converting(clients, how):
    got = clients.run(f"""
        def fail(source, out): raise {how}
        error(obtain, {SFT!r}, convert=fail)
    """)
    assert got["error"] == "DiskFull" and f"{SFT}.safetensors" in got["message"]


def place_by_hand(folder, *parts):
    for part in parts:
        source = FIXTURES / "internvl3" / part
        for path in [source] if source.is_file() else sorted(source.iterdir()):
            target = folder / path.relative_to(FIXTURES / "internvl3")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def test_files_placed_by_hand_need_no_network_and_stay(hub, clients):
    place_by_hand(clients.models / SFT, "iter_5000.pth", "base", "dc_ae")
    before = left(clients.models)
    clients.run(f"obtain({SFT!r}); result()", HF_HUB_OFFLINE="1")
    assert left(clients.models) == sorted([*before, f"{SFT}.safetensors"])
    assert hub.requests == []


def test_weights_placed_by_hand_are_not_downloaded(hub, clients):
    place_by_hand(clients.models / SFT, "iter_5000.pth")
    clients.run(f"obtain({SFT!r}); result()")
    assert WEIGHTS not in hub.downloaded() and "OpenGVLab/InternVL3-2B/tokenizer.json" in hub.downloaded()
    assert left(clients.models) == [f"{SFT}.safetensors", f"{SFT}/iter_5000.pth"]


def test_two_weight_files_placed_by_hand(clients):
    place_by_hand(clients.models / SFT, "iter_5000.pth", "vgt_ae_internvl3.pth")
    got = clients.run(f"error(obtain, {SFT!r})")
    assert "iter_5000.pth, vgt_ae_internvl3.pth" in got["message"] and SFT in got["message"]


def test_the_hub_cache_is_used_and_kept(hub, clients):
    clients.run("""
        from huggingface_hub import hf_hub_download
        hf_hub_download("hustvl/vgt_internvl3_1_6B_sft", "iter_5000.pth")
        hf_hub_download("OpenGVLab/InternVL3-2B", "config.json")
        hf_hub_download("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "config.json")
        result()
    """)
    kept = left(clients.cache)
    hub.forget()
    clients.run(f"obtain({SFT!r}); result()", HF_HUB_OFFLINE="1")
    assert hub.requests == [] and left(clients.cache) == kept
    clients.run(f"(folder / '{SFT}.safetensors').unlink(); obtain({SFT!r}); result()")
    assert WEIGHTS not in hub.downloaded() and "OpenGVLab/InternVL3-2B/tokenizer.json" in hub.downloaded()
    assert any(name.endswith("tokenizer.json") for name in left(clients.cache))


def test_each_repository_is_downloaded_from_one_commit(hub, clients):
    """The pinned one, or for all its files the one that was listed; also where the cache holds a later one."""
    clients.run("""
        from huggingface_hub import hf_hub_download
        hf_hub_download("OpenGVLab/InternVL3-2B", "config.json")
        result()
    """)
    hub.forget()
    clients.run(f"obtain({SFT!r}); result()")
    asked = {}
    for repository, revision in hub.revisions:
        asked.setdefault(repository, set()).add(revision)
    for repository in (vgt_hub.DC_AE, "OpenGVLab/InternVL3-2B"):
        assert asked.pop(repository) == {vgt_hub.REVISIONS[repository]}
    assert asked == {"hustvl/vgt_internvl3_1_6B_sft": {"main", REVISION}}  # listed, then taken


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_offline_says_what_to_put_where(hub, clients, env):
    got = clients.run(f"error(obtain, {SFT!r})", **env)
    assert got["error"] == "Offline"
    place = Path("models") / SFT
    for part in ("hustvl/vgt_internvl3_1_6B_sft", "OpenGVLab/InternVL3-2B", vgt_hub.DC_AE):
        assert part in got["message"]
    for part in (place, place / "base", place / "dc_ae"):
        assert str(part) in got["message"]
    assert hub.requests == []


def test_a_token_is_sent_to_the_hub_alone(hub, clients):
    hub.token = "hf_secret"
    got = clients.run(f"error(obtain, {SFT!r})")
    assert "HF_TOKEN" in got["message"] and "hustvl/vgt_internvl3_1_6B_sft" in got["message"]
    clients.run(f"obtain({SFT!r}); result()", HF_TOKEN="hf_secret")  # the storage host refuses requests with a token


@pytest.mark.parametrize("names", [[], ["a.pth", "b.pth"]])
def test_no_or_several_weights_in_the_repository(hub, clients, names):
    hub.repositories["hustvl/vgt_internvl3_1_6B_sft"] = {"README.md": b"", **dict.fromkeys(names, b"weights")}
    got = clients.run(f"error(obtain, {SFT!r})")
    assert "hustvl/vgt_internvl3_1_6B_sft" in got["message"]
    assert all(name in got["message"] for name in names or ["README.md", ".pth"])


def test_a_repository_that_is_gone(hub, clients):
    del hub.repositories["OpenGVLab/InternVL3-2B"]
    got = clients.run(f"error(obtain, {SFT!r})")
    assert got["error"] == "HubError" and "OpenGVLab/InternVL3-2B" in got["message"]


def test_unknown_name():
    with pytest.raises(vgt_hub.HubError, match=r"'VGT-9'.*VGT-AE-InternVL3"):
        vgt_hub.download("VGT-9", "nowhere")
