"""Pictures with captions: a folder, WebDataset shards, or generated scenes."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..scenes.drawings import DrawingsDataset
from ..scenes.world import ScenesDataset
from .processes import rank_and_world

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class DataError(ValueError):
    """The training data cannot be used; the message names the file."""


def fit(file, size: int, name: str | Path) -> Tensor:
    """The middle square of a picture file at size x size pixels: float32 [3, size, size] in [0, 1].

    Raises DataError with `name` when it cannot be read.
    """
    try:
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image).convert("RGB")
            image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    except Exception as error:  # Pillow raises SyntaxError for some damage, and errors of its own
        raise DataError(f"{name} cannot be read as a picture ({error}); replace or remove it.") from error
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3)
    return pixels.movedim(-1, 0).float() / 255


class FolderDataset(Dataset):
    """A folder of pictures: (pixels float32 [3, size, size] in [0, 1], caption).

    Captions come from NAME.txt beside each picture, or from `captions.jsonl`, or another single .jsonl of the folder,
    whose lines hold `image` (a path in the folder) and `caption`. Raises DataError when there are no pictures, or a
    picture without a caption where `captions` asks for them, or a caption without its picture, or several lists.
    """

    def __init__(self, folder: str | Path, size: int, captions: bool = True):
        self.folder, self.size = Path(folder), size
        if not self.folder.is_dir():
            raise DataError(f"There is no folder {self.folder}; set data.path to the folder of pictures.")
        lists = sorted(self.folder.glob("*.jsonl"))
        if len(lists) > 1:
            lists = [path for path in lists if path.name == "captions.jsonl"]
            if not lists:
                raise DataError(
                    f"{self.folder} holds several .jsonl files; name the one with the captions captions.jsonl."
                )
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
            place = lists[0] if lists else f"{bare.with_suffix('.txt').name} beside it"
            raise DataError(f"{bare} has no caption; write it into {place}.")

    def _from_list(self, path: Path) -> list[tuple[Path, str]]:
        items = []
        for number, line in enumerate(_text(path).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                item = self.folder / entry["image"], entry["caption"].strip()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f'{path}, line {number}, must be {{"image": …, "caption": …}} ({error}).') from error
            if not item[0].is_file():
                raise DataError(f"{path}, line {number}, is a caption without its picture {entry['image']}.")
            items.append(item)
        return items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        path, caption = self.items[index]
        return fit(path, self.size, path), caption


def _caption_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    return _text(text).strip() if text.is_file() else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as such.") from error


@dataclass
class ShardDataset(IterableDataset):
    """WebDataset shards as a stream of (pixels, caption), shuffled; a sample holds a picture and, as `txt`, a caption.

    Every process, and every worker that reads for it, has shards of its own, others in every epoch. Raises DataError.
    """

    shards: list[str]
    size: int
    captions: bool
    seed: int
    endless: bool = False
    """Go on with another epoch at the end."""

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        import webdataset

        barren = 0
        for epoch in count() if self.endless else (0,):
            rng = random.Random(f"{self.seed} {epoch}")
            shards = rng.sample(self.shards, len(self.shards))
            samples = webdataset.WebDataset(
                shards, shardshuffle=False, nodesplitter=webdataset.split_by_node, empty_check=False
            )
            seen = False
            try:
                for sample in samples.shuffle(1000, rng=rng):
                    seen = True
                    yield self._decode(sample)
            except DataError:
                raise
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                raise DataError(f"A shard cannot be read ({error}); replace or remove it.") from error
            # A reader may be dealt a shard without samples, but not for ever.
            barren = 0 if seen else barren + 1
            if barren > len(shards):
                raise DataError(
                    f"There are no samples in the shards from {self.shards[0]} on; set data.path to others."
                )

    def _decode(self, sample: dict) -> tuple[Tensor, str]:
        name = f"{sample['__key__']} of {sample['__url__']}"
        extension = next((key for key in sample if f".{key.lower()}" in _PICTURES), None)
        if extension is None or (self.captions and "txt" not in sample):
            missing = "picture" if extension is None else "caption (.txt)"
            raise DataError(f"Sample {name} has no {missing}.")
        try:
            caption = sample.get("txt", b"").decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"The caption of {name} is not UTF-8 text ({error}).") from error
        return fit(io.BytesIO(sample[extension]), self.size, name), caption


def _open_shards(path: str, size: int, captions: bool, seed: int) -> ShardDataset:
    """path: files or addresses in brace notation."""
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise DataError("Reading shards needs the webdataset library; install requirements-train.txt.") from error
    shards = expand_urls(path)
    gone = next((shard for shard in shards if ":" not in shard and not Path(shard).is_file()), None)
    if gone is not None:
        raise DataError(f"There is no shard {gone}; set data.path to the shards.")
    return ShardDataset(shards, size, captions, seed)


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


def open_data(settings: dict, *, captions: bool, token_pixels: int = 1):
    """The data set of a configuration's [data] table, of pictures whose sides are multiples of `token_pixels`.

    kind: "scenes" (size, seed, length), "drawings" (size, folder, seed, length, shapes, free), "folder" (size, path) or
    "webdataset" (size, path: shards in brace notation).
    Raises DataError.
    """
    settings = dict(settings)
    kind, size = settings.pop("kind", None), settings.pop("size", None)
    if not isinstance(size, int) or size < token_pixels or size % token_pixels:
        raise DataError(f"data.size is {size!r}; it must be a multiple of {token_pixels}.")
    try:
        if kind == "scenes":
            return ScenesDataset(size, **settings)
        if kind == "drawings":
            return DrawingsDataset(size, **settings)
        if kind == "folder":
            return FolderDataset(size=size, captions=captions, folder=settings.pop("path"), **settings)
        if kind == "webdataset":
            return _open_shards(path=settings.pop("path"), size=size, captions=captions, seed=settings.pop("seed", 0))
    except (TypeError, KeyError) as error:
        raise DataError(f"The [data] table does not suit kind {kind!r} ({error}).") from error
    raise DataError(f"data.kind is {kind!r}; it must be scenes, drawings, folder or webdataset.")


def open_held_out(settings: dict, *, captions: bool, token_pixels: int = 1) -> Dataset:
    """The data set of a [held_out] table, whose items can be asked for one by one. Raises DataError."""
    dataset = open_data(settings, captions=captions, token_pixels=token_pixels)
    if isinstance(dataset, IterableDataset):
        raise DataError("held_out.kind is 'webdataset'; it must be folder, scenes or drawings.")
    return dataset


def caption_of(dataset, index: int) -> str:
    """The caption of an item, without its picture where the data set can do so."""
    if isinstance(dataset, ScenesDataset | DrawingsDataset):
        return dataset.scene(index)[2]
    return dataset.items[index][1] if isinstance(dataset, FolderDataset) else dataset[index][1]


def batches(dataset, batch_size: int, *, seed: int, first: int, rank: int, world: int, workers: int) -> Iterator:
    """This process's share of each batch from batch `first` on, without end; the order follows from the seed.

    Yields what the dataset gives, collated: (pixels [batch_size / world, 3, H, W], list of captions).
    """
    share = batch_size // world
    if isinstance(dataset, ShardDataset):
        # A stream can only be read from its start: what was seen is read again and dropped.
        return islice(read(replace(dataset, endless=True), share, workers), first, None)
    sampler = EndlessShuffle(len(dataset), seed, first * batch_size, rank, world)
    return read(dataset, share, workers, sampler)


def read(dataset, batch_size: int, workers: int, sampler: Sampler | None = None) -> Iterator:
    """What the dataset gives, collated. Raises DataError, in one sentence also where a worker process found it."""
    if isinstance(dataset, ShardDataset):
        readers = max(1, workers) * rank_and_world()[1]
        if len(dataset.shards) < readers:
            raise DataError(
                f"There are {len(dataset.shards)} shards for {readers} reading processes; lower training.workers, or "
                "cut the data into more shards."
            )
    # Here, so that worker processes start when this is called.
    return _in_one_sentence(iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers)))


def _in_one_sentence(loaded: Iterator) -> Iterator:
    try:
        yield from loaded
    except DataError as error:
        # A worker's error comes with its whole traceback as the message.
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None
