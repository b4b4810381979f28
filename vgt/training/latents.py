"""Latents of a data set, encoded once and kept on disk beside their captions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm import tqdm

from .autoencoder import latent_of
from .settings import TrainingError

BATCH = 64
"""Pictures encoded at once."""


class LatentDataset(Dataset):
    """(latent [32, h, w], caption, semantic features [T, D]) of each picture; all float32, stored in half.

    The features are [0] where the file was made without.
    """

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.about = json.loads(file.metadata()["about"])
            self.captions = json.loads(bytes(file.get_tensor("captions")))
            self.latents, self.features = file.get_tensor("latents"), file.get_tensor("features")

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor]:
        return self.latents[index].float(), self.captions[index], self.features[index].float()


@torch.no_grad()
def cached_latents(
    path: Path, dataset, autoencoder, about: dict, count: int, device, *, features: bool, workers: int = 0
) -> LatentDataset:
    """Encode the first `count` items of `dataset` into `path`, unless that is done; every process does a part.

    about: plain data that tells the tokenizer and the data apart. features: keep the semantic features too. Raises
    TrainingError when `path` holds others, and when there are fewer items.
    """
    about = json.loads(json.dumps({**about, "count": count, "features": features}))
    if path.is_file():
        found = LatentDataset(path)
        if found.about != about:
            raise TrainingError(f"{path} holds latents of another tokenizer or other data; remove it to encode again.")
        return found
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [path.with_name(f"{path.name}.{index}-{world}.part") for index in range(world)]
    mine = range(rank * count // world, (rank + 1) * count // world)
    source = dataset if isinstance(dataset, IterableDataset) else Subset(dataset, mine)
    if source is not dataset and count > len(dataset):
        raise TrainingError(f"data.count is {count}, but there are {len(dataset)} pictures.")
    made = {"latents": [], "features": []}
    captions = []
    with tqdm(total=len(mine), desc="encoding", unit="picture", disable=rank > 0, mininterval=5) as bar:
        for pixels, texts in DataLoader(source, BATCH, num_workers=workers):
            left = len(mine) - len(captions)
            pixels = pixels[:left].to(device)
            captions += texts[:left]
            semantic, latent = latent_of(autoencoder, pixels, normalised=True)
            made["latents"].append(latent.half().cpu())
            made["features"].append(semantic.half().cpu() if features else torch.empty(len(pixels), 0))
            bar.update(len(pixels))
            if len(captions) == len(mine):
                break
    _write(parts[rank], {name: torch.cat(tensors) for name, tensors in made.items()}, captions, about)
    if world > 1:
        dist.barrier()
    if rank == 0:
        done = [LatentDataset(part) for part in parts]
        tensors = {name: torch.cat([getattr(part, name) for part in done]) for name in made}
        whole = path.with_name(path.name + ".whole.part")
        _write(whole, tensors, [caption for part in done for caption in part.captions], about)
        os.replace(whole, path)
        for part in parts:
            part.unlink()
    if world > 1:
        dist.barrier()
    return LatentDataset(path)


def _write(path: Path, tensors: dict[str, Tensor], captions: list[str], about: dict) -> None:
    # As a tensor: the header of a safetensors file ends at 100 MB.
    text = torch.frombuffer(bytearray(json.dumps(captions).encode()), dtype=torch.uint8)
    save_file({**tensors, "captions": text}, path, metadata={"about": json.dumps(about)})
