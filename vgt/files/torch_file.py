"""Reads the tensors of a file written by torch.save without running anything its pickle names.

The format: a zip archive with `data.pkl` and one stored (uncompressed) entry a storage. Training frameworks pickle
objects of their own beside the tensors, which `torch.load(weights_only=True)` refuses; here every name a pickle asks
for is answered by an inert placeholder, except the few that make a tensor. PyTorch's own restricted unpickler with
inert stand-ins will not do: in 2.11 a dict's key of deeply nested tuples ends the process or takes for ever, and a
storage may be shorter than its tensors.

Every size is checked against the file before it is used: reading past the end of a mapped file kills the process.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAX_PICKLE = 64 << 20
"""Bytes. The pickle of a model holds names and shapes; what is larger is no model."""
_MAX_DIMENSIONS = 8
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"
"""Near the start of what torch.save wrote before its version 1.6, and still writes if told to."""


class TorchFileError(ValueError):
    """The file is not a readable torch.save archive."""


class Placeholder:
    """Stands for any object that is not a tensor or a plain container. Takes whatever unpickling does to it."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return Placeholder()

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass


class _Tuple(tuple):
    """A tuple that hashes without looking inside: as a dict's key, one nested deep would overflow the stack."""

    __hash__ = object.__hash__


def read_torch_file(path: str | Path) -> object:
    """The pickled object of `path`, with its tensors memory-mapped (private: writing to one does not reach the file).

    Raises TorchFileError when the file is no such archive, is damaged, or its tensors do not fit their storages.
    """
    with open(path, "rb") as file:
        start = file.read(32)
    if not start:
        raise TorchFileError("it is empty")
    if _LEGACY_MAGIC in start:
        raise TorchFileError(
            "it is in the format of PyTorch before 1.6; load it with torch.load and save it again with torch.save"
        )
    if not start.startswith(b"PK"):
        raise TorchFileError("it is not a file written by torch.save")
    try:
        with zipfile.ZipFile(path) as archive:
            return _Unpickler(path, archive).load()
    except (TorchFileError, OSError):
        raise
    except zipfile.BadZipFile as error:
        raise TorchFileError("it is truncated or damaged") from error
    except Exception as error:  # a damaged archive or pickle can fail in any way
        raise TorchFileError("it is damaged or no model (its pickle cannot be read)") from error


class _Unpickler(pickle._Unpickler):  # the Python one: a wild memo index cannot make it reserve memory
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, path: str | Path, archive: zipfile.ZipFile):
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(names) != 1:
            raise TorchFileError("it is a zip archive, but not one that torch.save wrote")
        super().__init__(io.BytesIO(_read(archive, names[0], _MAX_PICKLE)), encoding="utf-8")
        self._archive = archive
        self._prefix = names[0].removesuffix("data.pkl")
        byteorder = self._prefix + "byteorder"
        if byteorder in archive.namelist() and _read(archive, byteorder, 16).decode() != sys.byteorder:
            raise TorchFileError("it was written on a machine of another byte order")
        self._size = Path(path).stat().st_size
        try:
            mapped = torch.UntypedStorage.from_file(str(path), False, self._size)
        except RuntimeError as error:
            raise TorchFileError(f"its {self._size} bytes cannot be mapped into memory") from error
        self._bytes = torch.empty(0, dtype=torch.uint8).set_(mapped)

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return _REBUILD[name]
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return _rebuild_from_type
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return Placeholder

    def persistent_load(self, key):
        kind, dtype, name, _device, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Placeholder()
        begin, length = self._locate(f"{self._prefix}data/{_checked(name, str)}")
        end = begin + _checked(count, int) * dtype.itemsize
        if end > begin + length:
            raise TorchFileError(f"its storage {name} is shorter than it says")
        if begin % dtype.itemsize:
            raise TorchFileError("its tensors are not aligned, which torch.save always does")
        return self._bytes[begin:end].view(dtype)

    def _locate(self, entry: str) -> tuple[int, int]:
        """Where in the file the bytes of a stored entry are: its local header has a length of its own."""
        info = self._archive.getinfo(entry)
        if info.compress_type != zipfile.ZIP_STORED:
            raise TorchFileError("its tensors are compressed, which torch.save never does")
        begin = info.header_offset + 30
        if not 30 <= begin <= self._size:
            raise TorchFileError("it is truncated or damaged")
        header = self._bytes[begin - 30 : begin].numpy().tobytes()
        begin += sum(struct.unpack("<HH", header[26:30]))  # lengths of the name and of the extra field
        if header[:4] != b"PK\x03\x04" or begin + info.file_size > self._size:
            raise TorchFileError("it is truncated or damaged")
        return begin, info.file_size

    # What else a pickle may do: the state of an object is dropped, sets are not built, tuples hash by identity.

    def _build(self):
        self.stack.pop()

    def _set(self):
        self.append(Placeholder())

    def _add_items(self):
        self.pop_mark()

    def _frozen_set(self):
        self.pop_mark()
        self.append(Placeholder())

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.EMPTY_SET[0]] = _set
    dispatch[pickle.ADDITEMS[0]] = _add_items
    dispatch[pickle.FROZENSET[0]] = _frozen_set
    for _opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):

        def _tuple(self, load=dispatch[_opcode[0]]):
            load(self)
            self.stack[-1] = _Tuple(self.stack[-1])

        dispatch[_opcode[0]] = _tuple
    # No torch.save writes these; they reach into the process or reserve memory by a number in the file.
    for _opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.NEXT_BUFFER):
        del dispatch[_opcode[0]]


def _read(archive: zipfile.ZipFile, entry: str, limit: int) -> bytes:
    """All of a small entry. A compressed one, or one of more than `limit` bytes, is refused unread."""
    info = archive.getinfo(entry)
    if info.file_size > limit or info.compress_type != zipfile.ZIP_STORED:
        name = entry.rpartition("/")[2]
        raise TorchFileError(
            f"it is a zip archive, but its {name} is too large or compressed, which torch.save never does"
        )
    return archive.read(info)


def _checked(value, kind: type):
    """`value` if it is a string, or a number that can be a size; what a damaged pickle says may be anything."""
    if type(value) is not kind or (kind is int and not 0 <= value < 2**48):
        raise TorchFileError("it is damaged (a tensor of impossible size)")
    return value


def _rebuild_tensor(storage, offset, size, stride, *_rest) -> Tensor | Placeholder:
    if not isinstance(storage, Tensor):
        return Placeholder()
    for number in (offset, *size, *stride):
        _checked(number, int)
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise TorchFileError("it is damaged (a tensor of impossible size)")
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride)) + 1
    if 0 not in size and (reach > storage.numel() or math.prod(size) > storage.numel()):
        raise TorchFileError("it is damaged (a tensor reaches beyond its storage)")
    return storage.as_strided(size, stride, storage.storage_offset() + offset)


def _rebuild_parameter(data, *_rest):
    return data


def _rebuild_from_type(rebuild, _type, args, _state):
    return rebuild(*args)


_REBUILD = {
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
}
