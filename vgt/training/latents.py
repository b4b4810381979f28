"""Keeps the latents of a data set on disk, encoded once, beside their captions: a folder of files of CHUNK pictures."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from ..files.fingerprint import fingerprint
from .autoencoder import latent_of
from .data import ShardDataset, read
from .processes import rank_and_world
from .settings import TrainingError

BATCH = 64
"""Pictures encoded at once."""
CHUNK = 1024
"""Pictures a file, at most: what is held in memory until it is written, and what is encoded again after a break."""


class LatentDataset(Dataset):
    """Reads what was kept: (latent [32, h, w], caption, semantic features [T, D]) of the first `count` pictures.

    Tensors are float32, stored in half. The features are [0] where they were not kept. Files are mapped into memory,
    not read.
    """

    def __init__(self, folder: Path, count: int):
        self.captions: list[str] = []
        self._firsts: list[int] = []
        self._files: list[tuple[Tensor, Tensor]] = []
        for path in _files(folder):
            with safe_open(path, framework="pt") as file:
                self._firsts.append(len(self.captions))
                self._files.append((file.get_tensor("latents"), file.get_tensor("features")))
                self.captions += json.loads(file.get_tensor("captions").numpy().tobytes())
        del self.captions[count:]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor]:
        file = bisect_right(self._firsts, index) - 1
        latents, features = self._files[file]
        row = index - self._firsts[file]
        return latents[row].float(), self.captions[index], features[row].float()


@torch.no_grad()
def cached_latents(
    folder: Path, dataset, autoencoder, data: dict, count: int, device, *, features: bool, workers: int = 0
) -> LatentDataset:
    """Encode the first `count` items of `dataset` into `folder`, or what is missing of them; every process does a part.

    data: plain data that tells the data apart. features: keep the semantic features too. Raises TrainingError when
    `folder` holds something else, or latents of another tokenizer or other data, and when there are fewer items.
    """
    rank, world = rank_and_world()
    stream = isinstance(dataset, ShardDataset)
    if not stream and count > len(dataset):
        raise TrainingError(f"data.count is {count}, but there are {len(dataset)} pictures.")
    # The pixel decoder has no part in latents.
    encoder = {
        name: tensor for name, tensor in autoencoder.state_dict().items() if not name.startswith("pixel_decoder")
    }
    about = {"data": data, "encoder": fingerprint(encoder), "features": features}
    # Of a stream each process sees its own part.
    reading = {"count": count, "processes": world, "workers": workers} if stream else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise TrainingError(f"{folder} is a file; latents go into a folder.") from error
    missing = _missing(folder, json.loads(json.dumps(about)), reading, count)
    if world > 1:
        dist.barrier()  # or some would count what others have just written

    skip = 0
    if stream:
        mine = range(count * rank // world, count * (rank + 1) // world)
        # It can only be read from its start; what was done of it is dropped.
        skip = next((place for place in missing if place in mine), mine.stop) - mine.start
        mine, source = mine[skip:], dataset
    else:
        mine = missing[len(missing) * rank // world : len(missing) * (rank + 1) // world]
        source = Subset(dataset, mine)
    keep = partial(_write, folder, about={"about": about, "reading": reading})
    encoded = _encode(read(source, BATCH, workers), skip, mine, autoencoder, device, features, keep) if mine else 0
    if encoded < len(mine):
        raise TrainingError(
            f"data.count is {count}, but the shards of process {rank + 1} of {world} hold {skip + encoded} pictures of "
            f"its {skip + len(mine)}; lower data.count, and remove {folder}."
        )
    if world > 1:
        dist.barrier()
    return LatentDataset(folder, count)


def _encode(batches, skip: int, places: Sequence[int], autoencoder, device, features: bool, keep) -> int:
    """Encode what comes after `skip` pictures for `places`, and `keep` it file by file; returns how many there were."""
    pieces, rows, encoded = _pieces(places), [], 0
    shown = rank_and_world()[0] == 0
    with tqdm(total=len(places), desc="encoding", unit="picture", disable=not shown, mininterval=5) as bar:
        for pixels, captions in batches:
            here = slice(skip, skip + len(places) - encoded)
            skip = max(0, skip - len(pixels))
            pixels, captions = pixels[here], captions[here]
            if not captions:
                continue
            semantic, latent = latent_of(autoencoder, pixels.to(device), normalised=True)
            kept = semantic.half().cpu() if features else torch.empty(len(pixels), 0)
            rows += zip(latent.half().cpu(), kept, captions)
            while pieces and len(rows) >= len(pieces[0]):
                piece = pieces.pop(0)
                keep(piece[0], rows[: len(piece)])
                del rows[: len(piece)]
            encoded += len(captions)
            bar.update(len(captions))
            if encoded == len(places):
                break
    return encoded


def _files(folder: Path) -> list[Path]:
    """In the order of their pictures: a file's name is the place of its first."""
    return sorted(folder.glob("*.safetensors"))


def _missing(folder: Path, about: dict, reading: dict | None, count: int) -> list[int]:
    """The places below `count` that no file holds yet. Raises TrainingError for files that are of something else."""
    done, begun = set(), None
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                found = json.loads((file.metadata() or {})["latents"])
                held = file.get_slice("latents").get_shape()[0]
            done.update(range(int(path.stem), int(path.stem) + held))
        except (SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(f"{path} is no file of latents; give latents a folder of their own.") from error
        if found["about"] != about:
            raise TrainingError(
                f"{folder} holds latents of another tokenizer or other data; remove it to encode again."
            )
        begun = found["reading"]
    missing = [place for place in range(count) if place not in done]
    if missing and begun != reading and done:
        names = [name for name in reading if begun[name] != reading[name]]
        was, now = (", ".join(f"{name} {one[name]}" for name in names) for one in (begun, reading))
        raise TrainingError(f"{folder} was begun with {was}, not {now}; go on as before, or remove it to encode again.")
    return missing


def _pieces(places: Sequence[int]) -> list[list[int]]:
    """Cut rising places into runs without a gap, of CHUNK at most."""
    pieces: list[list[int]] = []
    for place in places:
        if not pieces or place != pieces[-1][-1] + 1 or len(pieces[-1]) == CHUNK:
            pieces.append([])
        pieces[-1].append(place)
    return pieces


def _write(folder: Path, first: int, rows: list[tuple[Tensor, Tensor, str]], about: dict) -> None:
    latents, features, captions = zip(*rows)
    # As a tensor: the header of a safetensors file ends at 100 MB.
    text = torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8)
    tensors = {"latents": torch.stack(latents), "features": torch.stack(features), "captions": text}
    path = folder / f"{first:09}.safetensors"
    unfinished = path.with_name(path.name + ".part")
    save_file(tensors, unfinished, metadata={"latents": json.dumps(about)})
    os.replace(unfinished, path)
