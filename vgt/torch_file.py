"""Reads the tensors of a file written by torch.save without running anything its pickle names.

The format: a zip archive with `data.pkl` and one stored (uncompressed) entry a storage. Training frameworks pickle
objects of their own beside the tensors, which `torch.load(weights_only=True)` refuses; here every name a pickle asks
for is answered by an inert placeholder, except the few that make a tensor.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
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


class TorchFileError(ValueError):
    """The file is not a readable torch.save archive."""


class Placeholder:
    """Stands for any object that is not a tensor or a plain container. Takes whatever unpickling does to it."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return Placeholder()

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass


class _Storage:
    def __init__(self, dtype: torch.dtype, data: Tensor):
        self.dtype, self.data = dtype, data


def read_torch_file(path: str | Path) -> object:
    """The pickled object of `path`, with its tensors memory-mapped (private: writing to one does not reach the file).

    Raises TorchFileError when the file is no such archive, is truncated, or its tensors do not fit their storages.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise TorchFileError("it is a zip archive, but not one that torch.save wrote")
            if archive.getinfo(names[0]).file_size > _MAX_PICKLE:
                raise TorchFileError("its pickle is too large for a model")
            unpickler = _Unpickler(path, archive, names[0].removesuffix("data.pkl"))
            return unpickler.load()
    except (TorchFileError, OSError):
        raise
    except zipfile.BadZipFile as error:
        raise TorchFileError("it is truncated or not a file written by torch.save") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise TorchFileError(f"its pickle is damaged ({type(error).__name__}: {error})") from error


class _Unpickler(pickle._Unpickler):  # the Python one: a damaged file cannot make it reserve memory by a wild index
    def __init__(self, path, archive: zipfile.ZipFile, prefix: str):
        super().__init__(io.BytesIO(archive.read(prefix + "data.pkl")), encoding="utf-8")
        self._archive = archive
        self._prefix = prefix
        self._size = Path(path).stat().st_size
        self._path = str(path)
        mapped = torch.UntypedStorage.from_file(self._path, False, self._size)
        self._bytes = torch.empty(0, dtype=torch.uint8).set_(mapped)

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return Placeholder

    def persistent_load(self, key):
        kind, dtype, name, _device, count = key
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Placeholder()
        begin, length = self._locate(f"{self._prefix}data/{name}")
        if count * dtype.itemsize > length:
            raise TorchFileError(f"storage {name} is shorter than it says")
        data = self._bytes[begin : begin + count * dtype.itemsize]
        if data.storage_offset() % dtype.itemsize:
            data = data.clone()  # written by a torch that did not align
        return _Storage(dtype, data.view(dtype))

    def _locate(self, entry: str) -> tuple[int, int]:
        """Where in the file the bytes of a stored entry are: its local header has a length of its own."""
        info = self._archive.getinfo(entry)
        if info.compress_type != zipfile.ZIP_STORED:
            raise TorchFileError("its tensors are compressed, which torch.save never does")
        header = self._bytes[info.header_offset : info.header_offset + 30].numpy().tobytes()
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise TorchFileError("it is truncated")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        begin = info.header_offset + 30 + name_length + extra_length
        if begin + info.file_size > self._size:
            raise TorchFileError("it is truncated")
        return begin, info.file_size


def _rebuild_tensor(storage: _Storage, offset: int, size, stride, *_rest) -> Tensor:
    if not isinstance(storage, _Storage):
        return Placeholder()
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    if min([offset, *size, *stride]) < 0 or (0 not in size and reach > storage.data.numel()):
        raise TorchFileError("a tensor reaches beyond its storage")
    return storage.data.as_strided(size, stride, storage.data.storage_offset() + offset)


def _rebuild_parameter(data, *_rest):
    return data
