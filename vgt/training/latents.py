"""Latents of a data set, encoded once and kept on disk beside their captions: a folder of files of CHUNK pictures."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from ..fingerprint import fingerprint
from .autoencoder import latent_of
from .data import ShardDataset, read
from .settings import TrainingError

BATCH = 64
"""Pictures encoded at once."""
CHUNK = 1024
"""Pictures a file: what is held in memory until it is written, and what is encoded again after a break."""


class LatentDataset(Dataset):
    """(latent [32, h, w], caption, semantic features [T, D]) of each picture; all float32, stored in half.

    The features are [0] where they were not kept. Files are mapped into memory, not read.
    """

    def __init__(self, folder: Path):
        self.captions: list[str] = []
        self._chunks: list[tuple[Tensor, Tensor]] = []
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._chunks.append((file.get_tensor("latents"), file.get_tensor("features")))
                self.captions += json.loads(bytes(file.get_tensor("captions")))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor]:
        chunk, row = divmod(index, CHUNK)
        latents, features = self._chunks[chunk]
        return latents[row].float(), self.captions[index], features[row].float()


@torch.no_grad()
def cached_latents(
    folder: Path, dataset, autoencoder, data: dict, count: int, device, *, features: bool, workers: int = 0
) -> LatentDataset:
    """Encode the first `count` items of `dataset` into `folder`, or what is missing of them; every process does a part.

    data: plain data that tells the data apart. features: keep the semantic features too. Raises TrainingError when
    `folder` holds latents of another tokenizer or other data, and when there are fewer items.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    stream = isinstance(dataset, ShardDataset)
    if not stream and count > len(dataset):
        raise TrainingError(f"data.count is {count}, but there are {len(dataset)} pictures.")
    # The pixel decoder has no part in latents.
    encoder = {
        name: tensor for name, tensor in autoencoder.state_dict().items() if not name.startswith("pixel_decoder.")
    }
    about = {"data": data, "encoder": fingerprint(encoder), "count": count, "features": features}
    about = json.loads(json.dumps(about))
    # Which pictures of a stream a process sees.
    readers = [world, workers] if stream else None
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:06}.safetensors" for index in range(-(-count // CHUNK))]
    done = [path.is_file() for path in paths]
    _check(folder, about, None if all(done) else readers)

    mine = range(rank, len(paths), world)
    # A stream can only be read from its start.
    read_chunks = mine if stream else [chunk for chunk in mine if not done[chunk]]
    places = [place for chunk in read_chunks for place in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK))]
    if all(done[chunk] for chunk in mine):
        places = []
    upcoming, rows, seen = iter(places), [], 0
    batches = read(dataset if stream else Subset(dataset, places), BATCH, workers) if places else ()
    with tqdm(total=len(places), desc="encoding", unit="picture", disable=rank > 0, mininterval=5) as bar:
        for pixels, captions in batches:
            here = list(islice(upcoming, len(pixels)))
            new = [index for index, place in enumerate(here) if not done[place // CHUNK]]
            if new:
                semantic, latent = latent_of(autoencoder, pixels[new].to(device), normalised=True)
                kept = semantic.half().cpu() if features else torch.empty(len(new), 0)
                rows += zip((here[index] for index in new), latent.half().cpu(), kept, (captions[i] for i in new))
            while rows and rows[-1][0] >= (end := min(count, rows[0][0] + CHUNK)) - 1:
                first = rows[0][0]
                _write(paths[first // CHUNK], rows[: end - first], {"about": about, "readers": readers})
                del rows[: end - first]
            seen += len(here)
            bar.update(len(here))
            if seen == len(places):
                break
    if seen < len(places):
        raise TrainingError(
            f"data.count is {count}, but the shards of process {rank + 1} of {world} hold {seen} pictures of its "
            f"{len(places)}; lower data.count."
        )
    if world > 1:
        dist.barrier()
    return LatentDataset(folder)


def _check(folder: Path, about: dict, readers: list[int] | None) -> None:
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata()["latents of"])
        if found["about"] != about:
            raise TrainingError(
                f"{folder} holds latents of another tokenizer or other data; remove it to encode again."
            )
        if readers is not None and found["readers"] != readers:
            was, now = found["readers"], readers
            raise TrainingError(
                f"{folder} was begun by {was[0]} processes with {was[1]} workers each, not {now[0]} with {now[1]}; "
                "go on with as many, or remove it to encode again."
            )


def _write(path: Path, rows: list[tuple[int, Tensor, Tensor, str]], about: dict) -> None:
    _, latents, features, captions = zip(*rows)
    # As a tensor: the header of a safetensors file ends at 100 MB.
    text = torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8)
    tensors = {"latents": torch.stack(latents), "features": torch.stack(features), "captions": text}
    partial = path.with_name(path.name + ".part")
    save_file(tensors, partial, metadata={"latents of": json.dumps(about)})
    os.replace(partial, path)
