"""Checkpoints of torch.save are read without running anything that is pickled in them."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import shutil
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from checkpoints import full_state, reference, refused, same
from recorded import FIXTURES
from vgt.files.reading import read_checkpoint
from vgt.files.torch_file import Placeholder, TorchFileError, read_torch_file


class Evil:
    """Pickled, it asks for os.system."""

    def __init__(self, marker):
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


class EvilState(Evil):
    """Runs the command in __setstate__, if such an object were made."""

    def __reduce__(self):
        return EvilState, ("x",), {"command": self.command}

    def __setstate__(self, state):
        os.system(state["command"])


def evil_pickles(marker):
    command = f"touch {marker}".encode()
    yield pickle.dumps(Evil(marker), 2)
    yield pickle.dumps(Evil(marker), 4)
    yield pickle.dumps({"state_dict": {"a": [Evil(marker)]}, "message_hub": (Evil(marker), {"b": Evil(marker)})}, 2)
    yield pickle.dumps(EvilState(marker), 2)
    yield b"(S'" + command + b"'\nios\nsystem\n."  # INST
    yield b"(cos\nsystem\nS'" + command + b"'\no."  # OBJ
    yield b"\x80\x02cos\nsystem\n(S'" + command + b"'\nt\x81."  # NEWOBJ
    yield b"\x80\x04\x8c\x02os\x8c\x06system\x93}\x8c\x01a\x8c\x01bs\x85\x92."  # STACK_GLOBAL, NEWOBJ_EX
    yield b"c__builtin__\neval\n(S\"__import__('os').system('" + command + b"')\"\ntR."
    yield b"ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb."  # BUILD
    yield b"cos\nsystem\n."
    yield b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNS'" + command + b"'\n\x85NtR."


def write_torch_file(path, data, storages=(b"",), compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("x/data.pkl", data)
        for index, storage in enumerate(storages):
            archive.writestr(f"x/data/{index}", storage)


@pytest.mark.parametrize("index", range(12))
def test_nothing_a_pickle_names_is_run(tmp_path, index):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    write_torch_file(path, list(evil_pickles(marker))[index])
    refused(path)
    assert not marker.exists()


def test_the_evil_pickles_would_run(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(next(evil_pickles(marker)))
    assert marker.exists()


def test_a_model_with_evil_beside_it_loads(tmp_path, folder, family):
    marker = tmp_path / "marker"
    content = {"meta": Evil(marker), "state_dict": full_state(family), "hub": {"log": [EvilState(marker)], (1, 2): 3}}
    torch.save(content, folder / "iter_1.pth")
    same(read_checkpoint(folder), reference(family))
    assert not marker.exists()


def tensor_pickle(storage="0", count="4", offset="0", size="(I2\nI2\nt", stride="(I2\nI1\nt", dtype="FloatStorage"):
    """The pickle of {"a": tensor}, its parts as opcodes."""
    return (
        "(dS'a'\n"
        "ctorch._utils\n_rebuild_tensor_v2\n("
        f"(S'storage'\nctorch\n{dtype}\nS'{storage}'\nS'cpu'\nI{count}\ntQ"
        f"I{offset}\n{size}{stride}I00\nNtRs."
    ).encode()


def test_tensor_pickles_are_as_torch_reads_them(tmp_path):
    write_torch_file(tmp_path / "x.pth", tensor_pickle(), [struct.pack("<4f", 1, 2, 3, 4)])
    assert read_torch_file(tmp_path / "x.pth")["a"].tolist() == [[1, 2], [3, 4]]
    write_torch_file(tmp_path / "x.pth", tensor_pickle() + b".", [struct.pack("<4f", 1, 2, 3, 4)])
    with pytest.raises(TorchFileError, match="aligned"):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "parts",
    [
        {"count": "5"},
        {"count": "-1"},
        {"count": str(2**62)},
        {"count": str(10**30)},
        {"offset": "1"},
        {"offset": "-1"},
        {"size": f"(I{2**40}\nI{2**40}\nt", "stride": "(I0\nI0\nt"},
        {"size": "(I1000000\nI1\nt", "stride": "(I0\nI0\nt"},
        {"size": f"(L{2**200}L\nI1\nt"},
        {"size": "(I-2\nI2\nt"},
        {"size": "(F2.5\nI2\nt"},
        {"size": "(S'two'\nI2\nt"},
        {"size": "(I2\nt"},
        {"stride": "(I-2\nI1\nt"},
        {"size": "(" + "I1\n" * 90 + "t", "stride": "(" + "I1\n" * 90 + "t"},
        {"storage": "1"},
        {"storage": "../0"},
        {"dtype": "DoubleStorage"},
    ],
    ids=lambda parts: "-".join(f"{key}={value[:12]!r}" for key, value in parts.items()),
)
def test_tensors_that_reach_beyond_the_file_are_refused(tmp_path, parts):
    write_torch_file(tmp_path / "x.pth", tensor_pickle(**parts), [struct.pack("<4f", 1, 2, 3, 4)])
    with pytest.raises(TorchFileError):
        read_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # BYTEARRAY8
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",  # BINUNICODE8
        b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".",  # BINBYTES8
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # LONG4
        b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"N.",  # FRAME
        b"\x80\x02N" + b"\x85" * 200_000 + b"q\x00}h\x00Ns.",  # a tuple so deep as a key
        b"\x80\x02)" + b"2\x86" * 64 + b"q\x00}h\x00Ns.",  # one of 2^64 leaves
        b"\x80\x02)" + b"q\x00h\x00\x86" * 64 + b"q\x00}h\x00Ns.",  # the same by the memo
        b"\x80\x02]" + b"]a" * 10 + b"\x82\x01.",  # EXT1
        b"\x80\x02h\xff.",  # a memo that is not there
        b"N",
        b".",
        b"",
    ],
    ids=range(13),
)
def test_wild_pickles_end_at_once(tmp_path, data):
    write_torch_file(tmp_path / "x.pth", data)
    refused(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["data.pkl", "byteorder", "version", "data/0"])
@pytest.mark.parametrize("compress", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED], ids=["compressed", "stored"])
def test_entries_that_unpack_to_gigabytes_are_not_unpacked(tmp_path, name, compress):
    """Gigabytes in earnest; 100 MB here. What is never read (version) may be of any size."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        small = {
            "data.pkl": tensor_pickle(),
            "byteorder": sys.byteorder.encode(),
            "data/0": struct.pack("<4f", *range(4)),
        }
        for other in small.keys() - {name}:
            archive.writestr(f"x/{other}", small[other])
        entry = zipfile.ZipInfo(f"x/{name}")
        entry.compress_type = compress
        with archive.open(entry, "w") as file:
            for _ in range(100):
                file.write(b"}" * 10**6)
    assert compress == zipfile.ZIP_STORED or (tmp_path / "x.pth").stat().st_size < 300_000
    tracemalloc.start()
    with contextlib.suppress(TorchFileError):
        read_torch_file(tmp_path / "x.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    if name in ("data.pkl", "byteorder"):
        refused(tmp_path / "x.pth", f"its {name} is too large or compressed")


def test_writing_to_a_loaded_tensor_does_not_reach_the_file(tmp_path):
    path = shutil.copy(FIXTURES / "internvl3" / "iter_5000.pth", tmp_path)
    before = Path(path).read_bytes()
    for tensor in read_torch_file(path)["state_dict"].values():
        tensor.zero_()
    assert Path(path).read_bytes() == before


def test_objects_of_frameworks_become_placeholders(tmp_path):
    content = {"a": collections.Counter("aab"), "b": io.BytesIO, "c": {1, 2}, "d": Path("x"), "e": [torch.ones(2)]}
    torch.save(content, tmp_path / "x.pth")
    found = read_torch_file(tmp_path / "x.pth")
    assert [type(found[key]) for key in "ad"] == [Placeholder] * 2
    assert found["e"][0].tolist() == [1, 1]
