"""Damaged files: every one ends in a model or in one sentence, never in a crash, a hang, much memory, or code run.

Run as a program, this file is the child that loads damaged files: FORMAT, number of cases, folder to work in.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import shutil
import struct
import subprocess
import sys
import traceback
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = ("internvl3", "qwen2_5_vl")
FORMATS = {
    "full": "iter_5000.pth",
    "full-pickle": "iter_5000.pth",
    "tokenizer-only": "vgt_ae.pth",
    "tokenizer-only-pickle": "vgt_ae.pth",
    "published-safetensors": "published.safetensors",
    "published-safetensors-header": "published.safetensors",
    "single-file": "single.safetensors",
    "single-file-header": "single.safetensors",
    "config": "base/config.json",
    "tokenizer-config": "base/tokenizer_config.json",
    "tokenizer": "base/tokenizer.json",
    "decoder-config": "dc_ae/config.json",
}
"""What is damaged. With -pickle and -header, only what says what the file holds; a pickle's checksum is mended."""

SECONDS_A_CASE = 20
MEMORY = 400 << 20
"""Bytes that all the cases together may grow the process by; the files have two million."""


def run_child(kind: str, cases: int, folder: Path) -> str:
    child = subprocess.run(
        [sys.executable, __file__, kind, str(cases), str(folder)],
        capture_output=True,
        text=True,
        timeout=120 + 5 * cases,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    end = "\n".join(child.stdout.splitlines()[-3:])
    assert child.returncode == 0, f"exit status {child.returncode}\n{end}\n{child.stderr[-4000:]}"
    return end


@pytest.mark.skipif(sys.platform == "win32", reason="limits memory as Unix does")
def test_some_damaged_files_of_each_format(tmp_path):
    assert "cases" in run_child("all", 20, tmp_path)


@pytest.mark.soak
@pytest.mark.skipif(sys.platform == "win32", reason="limits memory as Unix does")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files(kind, tmp_path):
    print(run_child(kind, 300, tmp_path))


# The child


def prepare(family: str, folder: Path) -> Path:
    """A folder with a model of the family in each format."""
    import torch
    from safetensors.torch import save_file

    from vgt.files.reading import convert
    from vgt.files.torch_file import read_torch_file

    folder = folder / family
    for part in ("base", "dc_ae"):
        shutil.copytree(FIXTURES / family / part, folder / part)
    shutil.copy(FIXTURES / family / "iter_5000.pth", folder)
    shutil.copy(next((FIXTURES / family).glob("vgt_ae_*.pth")), folder / "vgt_ae.pth")
    convert(folder / "iter_5000.pth", folder / "single.safetensors")
    state = read_torch_file(folder / "iter_5000.pth")["state_dict"]
    save_file({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()},
              folder / "published.safetensors")  # fmt: skip
    return folder


def damage(data: bytes, kind: str, rng: random.Random) -> bytes:
    begin, end = 0, len(data)
    if kind.endswith("-header"):
        end = 8 + struct.unpack("<Q", data[:8])[0]
    elif kind.endswith("-pickle"):
        begin, end = pickle_range(data)
    elif rng.random() < 0.5:  # where a file says what it holds
        begin = rng.choice((0, max(0, end - 20000)))
        end = min(end, begin + 20000)
    way = rng.choice(("cut", "flip", "flip", "flip", "byte", "hole"))
    if way == "cut" and not kind.endswith("-pickle"):
        return data[: rng.randrange(begin, end)]
    damaged = bytearray(data)
    if way == "hole":
        start = rng.randrange(begin, end)
        length = min(rng.choice((1, 8, 64, 4096)), end - start)
        damaged[start : start + length] = bytes([rng.choice((0, 255))]) * length
    else:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            at = rng.randrange(begin, end)
            damaged[at] = rng.randrange(256) if way == "byte" else damaged[at] ^ 1 << rng.randrange(8)
    return mend_checksum(damaged, begin, end) if kind.endswith("-pickle") else bytes(damaged)


def pickle_range(data: bytes) -> tuple[int, int]:
    """Where data.pkl lies: torch.save writes it as the first entry."""
    name, extra = struct.unpack("<HH", data[26:30])
    length = data.index(b"\x50\x4b\x07\x08", 30 + name + extra)  # the data descriptor that follows
    return 30 + name + extra, length


def mend_checksum(data: bytearray, begin: int, end: int) -> bytes:
    """Without this, zipfile would see any damage to the pickle."""
    entry = data.index(b"PK\x01\x02", end)
    struct.pack_into("<I", data, entry + 16, zlib.crc32(data[begin:end]))
    return bytes(data)


def watch(event: str, arguments):
    """Ends the process when a file makes it look up or run something."""
    if event in ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        os.write(2, f"a damaged file led to {event} {arguments}\n".encode())
        os._exit(3)


def use(model) -> None:
    """What loads, runs: its numbers may be wrong, but its sizes go together."""
    import torch

    import vgt

    latent = model.encode(torch.full((1, 3, 56, 84), 0.5))
    model.decode(latent)
    if model.generator:
        model.generate(["a cat"], height=56, width=28, flow=vgt.FlowSettings(steps=2))


def main(kind: str, cases: int, folder: Path) -> None:
    import resource  # not on Windows

    import vgt
    import vgt.model
    import vgt.run.generation

    faulthandler.enable()
    good = [prepare(family, folder) for family in FAMILIES]
    for source in good:
        use(vgt.load(source / "iter_5000.pth"))
    sys.addaudithook(watch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") if sys.platform == "linux" else open(os.devnull) as file:
        mapped = int((file.read().split() or [0])[0]) * resource.getpagesize()
    if mapped:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 4 * MEMORY, mapped + 4 * MEMORY))
    for one in FORMATS if kind == "all" else (kind,):
        loaded = 0
        for case in range(cases):
            rng = random.Random(f"{one} {case}")
            source = good[case % len(good)]
            target = source / FORMATS[one]
            data = target.read_bytes()
            path = target if target.suffix in (".pth", ".safetensors") else source / "iter_5000.pth"
            print(f"{one} {case} ({source.name})", flush=True)
            faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
            try:
                target.write_bytes(damage(data, one, rng))
                loaded += load(path)
            finally:
                target.write_bytes(data)
                faulthandler.cancel_dump_traceback_later()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        grown *= 1 if sys.platform == "darwin" else 1024
        assert grown < MEMORY, f"{one}: {grown >> 20} MiB more in memory"
        print(f"{one}: {cases} cases, {loaded} of them loaded, {grown >> 20} MiB more in memory", flush=True)


def load(path: Path) -> bool:
    """Whether the file loaded; anything but a model or one sentence ends the process."""
    import vgt

    try:
        model = vgt.load(path)
    except (ValueError, OSError) as error:
        sentence = str(error)
        if "\n" in sentence or not 20 < len(sentence) < 700 or not sentence.endswith("."):
            raise AssertionError(f"no sentence: {sentence!r}") from error
        if isinstance(error, vgt.CheckpointError) and path.name not in sentence:
            raise AssertionError(f"does not name the file: {sentence!r}") from error
        return False
    with contextlib.suppress(ValueError):
        use(model)
    return True


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
