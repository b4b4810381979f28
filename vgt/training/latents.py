"""Latents of a data set, encoded once and kept on disk beside their captions."""

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
from torch.utils.data import Dataset
from tqdm import tqdm

from ..autoencoder import channel_norm
from ..config import TOKEN_PIXELS
from .settings import TrainingError


class LatentDataset(Dataset):
    """(latent [32, h, w], caption, semantic features [T, D], index) of each picture; all float32, stored in half."""

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, framework="pt") as file:
            self.about = json.loads(file.metadata()["about"])
            self.captions = json.loads(file.metadata()["captions"])
            self.latents, self.features = file.get_tensor("latents"), file.get_tensor("features")

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, str, Tensor]:
        return self.latents[index].float(), self.captions[index], self.features[index].float()


@torch.no_grad()
def cached_latents(path: Path, dataset, autoencoder, about: dict, count: int, device, batch_size=64) -> LatentDataset:
    """Encode the first `count` items of `dataset` into `path`, unless that is done; every process does a part.

    about: plain data that tells the tokenizer and the data apart. Raises TrainingError when `path` holds others.
    """
    about = json.loads(json.dumps({**about, "count": count}))
    if path.is_file():
        found = LatentDataset(path)
        if found.about != about:
            raise TrainingError(f"{path} holds latents of another tokenizer or other data; remove it to encode again.")
        return found
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [path.with_name(f"{path.name}.{index}-{world}.part") for index in range(world)]
    latents, features, captions = [], [], []
    mine = range(rank * count // world, (rank + 1) * count // world)
    indexed = hasattr(dataset, "__getitem__")
    source = (dataset[index] for index in mine) if indexed else islice(iter(dataset), len(mine))
    for _ in tqdm(range(0, len(mine), batch_size), desc="encoding", disable=rank > 0, mininterval=5):
        items = list(islice(source, batch_size))
        pixels = torch.stack([item[0] for item in items]).to(device)
        semantic = autoencoder.semantic_features(pixels)
        features.append(semantic.half().cpu())
        latents.append(_encode(autoencoder, semantic, pixels).half().cpu().contiguous())
        captions += [item[1] for item in items]
    metadata = {"about": json.dumps(about), "captions": json.dumps(captions)}
    save_file({"latents": torch.cat(latents), "features": torch.cat(features)}, parts[rank], metadata=metadata)
    if world > 1:
        dist.barrier()
    if rank == 0:
        done = [LatentDataset(part) for part in parts]
        tensors = {name: torch.cat([getattr(part, name) for part in done]) for name in ("latents", "features")}
        metadata["captions"] = json.dumps([caption for part in done for caption in part.captions])
        whole = path.with_name(path.name + ".whole.part")
        save_file(tensors, whole, metadata=metadata)
        os.replace(whole, path)
        for part in parts:
            part.unlink()
    if world > 1:
        dist.barrier()
    return LatentDataset(path)


def _encode(autoencoder, semantic: Tensor, pixels: Tensor) -> Tensor:
    latent = channel_norm(autoencoder.project(semantic), -1).transpose(1, 2)
    return latent.unflatten(2, (pixels.shape[2] // TOKEN_PIXELS, -1))
