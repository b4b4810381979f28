"""One file a model: what conversion writes, what loading it takes of memory, and the commands about models."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vgt
from checkpoints import full_state, make_folder, reference, refused, same
from recorded import FAMILIES, FIXTURES
from vgt.__main__ import main
from vgt.files.checkpoint import load_state
from vgt.files.reading import convert, read_checkpoint
from vgt.files.single_file import CONFIG_KEY, save_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Family → its converted file, alone in a folder."""
    folder = tmp_path_factory.mktemp("single")
    for family in FAMILIES:
        convert(FIXTURES / family, folder / f"{family}.safetensors")
    return {family: folder / f"{family}.safetensors" for family in FAMILIES}


def test_converted_files_hold_the_same_bits(family, single):
    found, expected = read_checkpoint(single[family]), reference(family)
    same(found, expected)
    assert found.tokenizer_json == expected.tokenizer_json
    loaded, direct = vgt.load(single[family]), vgt.load(FIXTURES / family)
    for part in ("autoencoder", "generator"):
        state = getattr(direct, part).state_dict()
        assert all(torch.equal(t, state[name]) for name, t in getattr(loaded, part).state_dict().items())
    assert loaded.tokenizer(["a cat"], [None]).lengths == direct.tokenizer(["a cat"], [None]).lengths
    with safe_open(single[family], "pt") as file:  # the library can read what is written without it
        assert len(file.keys()) == len(expected.tensors) + 1


def test_a_converted_file_converts_to_itself(family, single, tmp_path):
    convert(single[family], tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == single[family].read_bytes()


def test_parameters_in_training_are_saved(single, tmp_path):
    checkpoint = read_checkpoint(single["internvl3"])
    for name, tensor in checkpoint.tensors.items():
        checkpoint.tensors[name] = torch.nn.Parameter(tensor)
    save_checkpoint(checkpoint, tmp_path / "trained.safetensors")
    assert (tmp_path / "trained.safetensors").read_bytes() == single["internvl3"].read_bytes()


def test_a_failed_conversion_leaves_nothing(family, folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        convert(FIXTURES / family, out / "model.safetensors")
    out.mkdir()
    with pytest.raises(vgt.CheckpointError, match=r"end in \.safetensors"):
        convert(FIXTURES / family, out / "model.pth")
    state = full_state(family)
    del state["image_in_projector.bias"]
    torch.save(state, folder / "iter_1.pth")
    with pytest.raises(vgt.CheckpointError, match=r"iter_1.pth does not fit .*image_in_projector.bias is missing"):
        convert(folder, out / "model.safetensors")
    shutil.copy(FIXTURES / family / "iter_5000.pth", folder / "iter_1.pth")
    (folder / "base/tokenizer.json").unlink()
    with pytest.raises(vgt.CheckpointError, match="no tokenizer"):
        convert(folder, out / "model.safetensors")
    assert not list(out.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as Unix does")
def test_a_full_disk_leaves_what_was_there(single, tmp_path):
    import resource
    import signal

    target = tmp_path / "model.safetensors"
    target.write_bytes(b"what was there")
    checkpoint = read_checkpoint(single["internvl3"])
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError):
            save_checkpoint(checkpoint, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"what was there"


WILD = [0, -1, 10**9, 2**60, 10**30, "four", 2.5, None, [], float("nan"), float("inf"), True]


@pytest.mark.parametrize(
    "keys",
    [
        ("family",),
        ("generator",),
        ("autoencoder",),
        ("autoencoder", "vision"),
        ("autoencoder", "vision", "width"),
        ("autoencoder", "vision", "depth"),
        ("autoencoder", "vision", "heads"),
        ("autoencoder", "vision", "grid"),
        ("autoencoder", "semantic_width"),
        ("autoencoder", "decoder", "widths"),
        ("autoencoder", "decoder", "blocks"),
        ("autoencoder", "decoder", "head_width"),
        ("autoencoder", "decoder", "kernel"),
        ("generator", "language", "vocabulary"),
        ("generator", "language", "depth"),
        ("generator", "language", "kv_heads"),
        ("generator", "language", "head_width"),
        ("generator", "flow_head", "depth"),
        ("generator", "query_grid"),
        ("generator", "language", "no_such"),
    ],
    ids=".".join,
)
def test_wild_configurations_are_refused(single, tmp_path, keys):
    good = read_checkpoint(single["internvl3"])
    tokenizer = torch.frombuffer(bytearray(good.tokenizer_json), dtype=torch.uint8)
    tensors = dict(good.tensors) | {"tokenizer.json": tokenizer}
    path = tmp_path / "wild.safetensors"
    for value in WILD:
        config = good.config.to_dict()
        inner = config
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        save_file(tensors, path, metadata={CONFIG_KEY: json.dumps(config)})
        refused(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 10**5, '{"family": ["internvl3"]}'], ids=range(6))
def test_configurations_that_are_none_are_refused(single, tmp_path, text):
    tensors = dict(read_checkpoint(single["internvl3"]).tensors)
    save_file(tensors, tmp_path / "x.safetensors", metadata={CONFIG_KEY: text})
    refused(tmp_path / "x.safetensors", CONFIG_KEY)


@pytest.mark.parametrize("change, words", [({"family": "vlm_9"}, ("'vlm_9'",)), ({"format": 2}, ("format 2",))])
def test_files_of_a_newer_version_say_so(single, tmp_path, change, words):
    config = read_checkpoint(single["internvl3"]).config.to_dict() | change
    save_file({"x": torch.zeros(1)}, tmp_path / "new.safetensors", metadata={CONFIG_KEY: json.dumps(config)})
    refused(tmp_path / "new.safetensors", "newer VGT", "update VGT", *words)


def test_a_tokenizer_that_is_none_is_refused(single, tmp_path):
    good = read_checkpoint(single["internvl3"])
    metadata = {CONFIG_KEY: json.dumps(good.config.to_dict())}
    for tokenizer in (torch.zeros(3), torch.zeros(3, dtype=torch.uint8), torch.full((9,), 255, dtype=torch.uint8)):
        save_file(dict(good.tensors) | {"tokenizer.json": tokenizer}, tmp_path / "x.safetensors", metadata=metadata)
        refused(tmp_path / "x.safetensors", "tokenizer")
    shutil.copytree(FIXTURES / "internvl3", tmp_path / "model")
    (tmp_path / "model/base/tokenizer_config.json").write_text('{"pad_token": "<no such token>"}')
    refused(tmp_path / "model/iter_5000.pth", "<no such token>")


# Memory


MEASURE = """
import sys, threading, torch, vgt

def now():
    rows = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(rows[key].split()[0]) << 10 for key in ("VmRSS", "RssAnon")]

def load(path, dtype):
    before, peak, done = now(), now(), threading.Event()
    def watch():
        while not done.wait(0.002):
            peak[:] = map(max, peak, now())
    watcher = threading.Thread(target=watch)
    watcher.start()
    model = vgt.load(path, dtype=getattr(torch, dtype))
    done.set()
    watcher.join()
    size = sum(t.nbytes for part in (model.autoencoder, model.generator) for t in part.state_dict().values())
    return size >> 20, *((high - low) / size for high, low in zip(map(max, peak, now()), before))

for dtype in ("bfloat16", "float32"):
    load(sys.argv[1], dtype)  # what the first load alone takes
    for path in sys.argv[2:]:
        print(*load(path, dtype))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_weights_are_in_memory_once(tmp_path):
    """Growth is counted in all and without the pages of the mapped file, which the system takes back when it must."""
    folder, state = make_folder("internvl3", tmp_path / "model"), full_state("internvl3")
    prefix, wide = "lmm.language_model.model.", 100_000
    for layer in range(3):
        for name, shape in (("gate", (wide, 64)), ("up", (wide, 64)), ("down", (64, wide))):
            state[f"{prefix}layers.{layer}.mlp.{name}_proj.weight"] = torch.full(shape, 0.01, dtype=torch.bfloat16)
    state[prefix + "embed_tokens.weight"] = torch.full((400_000, 64), 0.01, dtype=torch.bfloat16)
    torch.save({"state_dict": state}, folder / "iter_1.pth")
    convert(folder, tmp_path / "single.safetensors")
    files = [FIXTURES / "internvl3", folder / "iter_1.pth", tmp_path / "single.safetensors"]
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, files)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    print("MiB of weights, peak growth in all, and of its own, as shares of them")
    print(child.stdout)
    (_, torch_all, torch_own), (_, single_all, single_own), *as_float32 = (
        map(float, line.split()) for line in child.stdout.splitlines()
    )
    assert torch_all < 1.3 and torch_own < 0.7  # gate_up_proj, half of the weights, is put together
    assert single_all < 1.1 and single_own < 0.1
    for _, in_all, own in as_float32:
        assert in_all < 1.7 and own < 1.2  # the file's bfloat16 is another half


def test_weights_in_the_wanted_dtype_stay_mapped(single):
    checkpoint = read_checkpoint(single["internvl3"])
    tensor = checkpoint.tensors["generator.image_out_projector.weight"]
    module = torch.nn.Linear(64, 64, bias=False, device="meta", dtype=torch.bfloat16)
    load_state(module, {"weight": tensor}, checkpoint.path, "a layer")
    assert module.weight.data_ptr() == tensor.data_ptr()


# The command line


def test_commands(single, tmp_path, capsys):
    assert main(["convert", str(FIXTURES / "internvl3"), str(tmp_path / "model.safetensors")]) == 0
    draw = ["generate", str(tmp_path / "model.safetensors"), "a cat", str(tmp_path / "cat.png"), "--device", "cpu"]
    assert main([*draw, "--width", "56", "--height", "28", "--steps", "2", "--batch", "2"]) == 0
    image = str(tmp_path / "cat-1.png")
    assert main(["reconstruct", str(single["qwen2_5_vl"]), image, str(tmp_path / "again.png"), "--device", "cpu"]) == 0
    from PIL import Image

    assert all(Image.open(tmp_path / name).size == (56, 28) for name in ("cat-0.png", "cat-1.png", "again.png"))
    assert "PSNR" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "{none}", "{tmp}/out.safetensors"],
        ["convert", "{model}", "{tmp}/none/out.safetensors"],
        ["convert", "{text}", "{tmp}/out.safetensors"],
        ["generate", "{text}", "a cat", "{tmp}/out.png"],
        ["generate", "{model}", "a cat", "{tmp}/out.png", "--width", "50"],
        ["generate", "{model}", "a cat", "{tmp}/out.png", "--width", "2800"],
        ["generate", "{model}", "a cat", "{tmp}/out.png", "--steps", "0"],
        ["generate", "{tokenizer}", "a cat", "{tmp}/out.png"],
        ["reconstruct", "{model}", "{none}", "{tmp}/out.png"],
        ["reconstruct", "{model}", "{text}", "{tmp}/out.png"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence(arguments, tmp_path, capsys, single):
    (tmp_path / "text.pth").write_text("hello")
    places = {
        "none": tmp_path / "none.pth",
        "text": tmp_path / "text.pth",
        "tmp": tmp_path,
        "model": single["internvl3"],
        "tokenizer": next((FIXTURES / "internvl3").glob("vgt_ae_*.pth")),
    }
    assert main([argument.format(**places) for argument in arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("vgt: ") and "\n" not in error
    assert not list(tmp_path.glob("out*"))


def test_the_program_ends_with_a_sentence(tmp_path):
    command = [sys.executable, "-m", "vgt", "convert", str(tmp_path), str(tmp_path / "x.safetensors")]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == 1
    assert child.stderr.count("\n") == 1 and "holds no weight file" in child.stderr
