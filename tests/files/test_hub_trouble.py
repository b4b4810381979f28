"""Downloads that break off, are cancelled, come wrong or find no room."""

import sys

import pytest

from hub_clients import LOST, SFT, SIZE, WEIGHTS, left


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
