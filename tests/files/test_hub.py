"""Downloads of the published models from a local hub, each once and no more than is needed."""

from pathlib import Path

import pytest

from hub_clients import SFT, SIZE, WEIGHTS, left
from hub_server import FIXTURES, REVISION
from vgt.files import hub as vgt_hub


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
