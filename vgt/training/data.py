"""Pictures with captions: a folder, WebDataset shards, or generated scenes."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..config import TOKEN_PIXELS
from .scenes import ScenesDataset

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class DataError(ValueError):
    """The training data cannot be used; the message names the file."""


def fit(image: Image.Image, size: int) -> Tensor:
    """The middle square of a picture at size x size pixels: float32 [3, size, size] in [0, 1]."""
    image = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3)
    return pixels.movedim(-1, 0).float() / 255


class FolderDataset(Dataset):
    """A folder of pictures: (pixels float32 [3, size, size] in [0, 1], caption).

    Captions come from NAME.txt beside each picture, or from `captions.jsonl`, or another single .jsonl of the folder,
    whose lines hold `image` (a path in the folder) and `caption`. Raises DataError when there are no pictures, or a
    picture without a caption where `captions` asks for them, or a caption without its picture.
    """

    def __init__(self, folder: str | Path, size: int, captions: bool = True):
        self.folder, self.size = Path(folder), size
        if not self.folder.is_dir():
            raise DataError(f"There is no folder {self.folder}; set data.path to the folder of pictures.")
        lists = sorted(self.folder.glob("*.jsonl"))
        if len(lists) > 1:
            lists = [path for path in lists if path.name == "captions.jsonl"] or lists
        pictures = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in _PICTURES)
        if lists:
            self.items = self._from_list(lists[0])
        else:
            self.items = [(path, _caption_beside(path)) for path in pictures]
            known = {path.with_suffix("") for path in pictures}
            orphans = [path for path in self.folder.rglob("*.txt") if path.with_suffix("") not in known]
            if orphans:
                raise DataError(f"{orphans[0]} is a caption without its picture; remove it, or add the picture.")
        if not self.items:
            raise DataError(f"{self.folder} holds no pictures; VGT reads {', '.join(sorted(_PICTURES))}.")
        bare = next((path for path, caption in self.items if not caption), None)
        if captions and bare is not None:
            raise DataError(f"{bare} has no caption; write it into {bare.with_suffix('.txt').name} beside it.")

    def _from_list(self, path: Path) -> list[tuple[Path, str]]:
        items = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                item = self.folder / entry["image"], str(entry["caption"]).strip()
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f'{path}, line {number}, must be {{"image": …, "caption": …}} ({error}).') from error
            if not item[0].is_file():
                raise DataError(f"{path}, line {number}, is a caption without its picture {entry['image']}.")
            items.append(item)
        return items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        path, caption = self.items[index]
        try:
            with Image.open(path) as image:
                return fit(image, self.size), caption
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as a picture ({error}); replace or remove it.") from error


def _caption_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8").strip() if text.is_file() else ""


def _shards(urls: str, size: int, captions: bool, seed: int):
    """Samples of WebDataset shards, shuffled, without end: each holds a picture and, under `txt`, its caption."""
    try:
        import webdataset
    except ImportError as error:
        raise DataError("Reading shards needs the webdataset library; install requirements-train.txt.") from error

    def decode(sample: dict):
        extension = next((name for name in sample if f".{name.lower()}" in _PICTURES), None)
        if extension is None or (captions and "txt" not in sample):
            missing = "picture" if extension is None else "caption (.txt)"
            raise DataError(f"Sample {sample['__key__']} of {sample['__url__']} has no {missing}.")
        try:
            with Image.open(io.BytesIO(sample[extension])) as image:
                pixels = fit(image, size)
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(
                f"The picture of {sample['__key__']} in {sample['__url__']} cannot be read ({error})."
            ) from error
        return pixels, sample.get("txt", b"").decode("utf-8").strip()

    return (
        webdataset.WebDataset(urls, shardshuffle=False, repeat=True, nodesplitter=webdataset.split_by_node)
        .shuffle(1000, rng=random.Random(seed))
        .map(decode)
    )


class EndlessShuffle(Sampler[int]):
    """Indices of one process, without end: every epoch a permutation that follows from the seed and the epoch."""

    def __init__(self, length: int, seed: int, first: int, rank: int, world: int):
        """first: how many items all processes together have already seen."""
        self.length, self.seed, self.first, self.rank, self.world = length, seed, first, rank, world

    def __iter__(self) -> Iterator[int]:
        at = self.first + self.rank
        epoch, permutation = -1, []
        while True:
            if at // self.length != epoch:
                epoch = at // self.length
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                permutation = torch.randperm(self.length, generator=generator).tolist()
            yield permutation[at % self.length]
            at += self.world


def open_data(settings: dict, *, captions: bool):
    """The data set of a configuration's [data] table.

    kind: "scenes" (size, seed, length), "folder" (size, path) or "webdataset" (size, path: shards in brace notation).
    Raises DataError.
    """
    settings = dict(settings)
    kind, size = settings.pop("kind", None), settings.pop("size", None)
    if not isinstance(size, int) or size < TOKEN_PIXELS or size % TOKEN_PIXELS:
        raise DataError(f"data.size is {size!r}; it must be a multiple of {TOKEN_PIXELS}.")
    try:
        if kind == "scenes":
            return ScenesDataset(size, **settings)
        if kind == "folder":
            return FolderDataset(size=size, captions=captions, folder=settings.pop("path"), **settings)
        if kind == "webdataset":
            return _shards(settings.pop("path"), size, captions, settings.pop("seed", 0))
    except (TypeError, KeyError) as error:
        raise DataError(f"The [data] table does not suit kind {kind!r} ({error}).") from error
    raise DataError(f"data.kind is {kind!r}; it must be scenes, folder or webdataset.")


def open_held_out(settings: dict, *, captions: bool) -> Dataset:
    """The data set of a [held_out] table, whose items can be asked for one by one. Raises DataError."""
    dataset = open_data(settings, captions=captions)
    if isinstance(dataset, IterableDataset):
        raise DataError("held_out.kind is 'webdataset'; it must be folder or scenes.")
    return dataset


def caption_of(dataset, index: int) -> str:
    """The caption of an item, without its picture where the data set can do so."""
    if isinstance(dataset, ScenesDataset):
        return dataset.scene(index)[2]
    return dataset.items[index][1] if isinstance(dataset, FolderDataset) else dataset[index][1]


def batches(dataset, batch_size: int, *, seed: int, first: int, rank: int, world: int, workers: int) -> Iterator:
    """This process's share of each batch from batch `first` on, without end; the order follows from the seed.

    Yields what the dataset gives, collated: (pixels [batch_size / world, 3, H, W], list of captions).
    """
    share = batch_size // world
    if isinstance(dataset, IterableDataset):
        # A stream can only be read from its start: what was seen is read again and dropped.
        loader = DataLoader(dataset, share, num_workers=workers, drop_last=True)
        return islice(iter(loader), first, None)
    sampler = EndlessShuffle(len(dataset), seed, first * batch_size, rank, world)
    return iter(DataLoader(dataset, share, sampler=sampler, num_workers=workers, drop_last=True))
