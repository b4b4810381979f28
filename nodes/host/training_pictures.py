"""Pictures and captions to train from: those that come with the pack, and whatever the host's nodes hand over."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import comfy.model_management as memory
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from .vae import VGTVAE

EXAMPLES = Path(__file__).parents[2] / "pictures"


def offer_pictures() -> None:
    """Put the pack's pictures for training where the host's nodes look for folders, once."""
    for folder in sorted(path for path in EXAMPLES.glob("*") if path.is_dir()):
        target = Path(folder_paths.get_input_directory()) / f"vgt_{folder.name}"
        if not target.exists():
            try:
                shutil.copytree(folder, target)
            except OSError as error:  # of a folder that cannot be written to
                logging.warning(f"VGT: the pictures of {folder.name} could not be put into {target} ({error}).")


def pairs(images: list[Tensor], texts: list[str]) -> tuple[list[Tensor], list[str]]:
    """Images [1, H, W, 3] and their captions, one each. One caption may serve all pictures."""
    images = [image[None] for batch in images for image in batch]
    texts = [str(text).strip() for text in texts]
    if not images:
        raise ValueError("There are no pictures to learn from; choose a folder that holds some.")
    if len(texts) == 1:
        texts *= len(images)
    if len(texts) != len(images):
        raise ValueError(f"There are {len(images)} pictures and {len(texts)} captions; give each picture its own.")
    if not all(texts):
        bare = sum(not text for text in texts)
        raise ValueError(
            f"{bare} of the {len(images)} pictures have no caption; write one into a .txt of the same name beside each."
        )
    return images, texts


def latents_of(vae: VGTVAE, images: list[Tensor], side: int) -> list[Tensor]:
    """Latents [32, h, w] of pictures [1, H, W, 3], fitted as VGT Encode's crop does; larger ones than `side` squared
    are made smaller first."""
    fitted, smaller, cropped = [], 0, 0
    for image in images:
        height, width = image.shape[1:3]
        if height * width > side**2:
            scale = (side**2 / (height * width)) ** 0.5
            height, width = (max(vae.token_pixels, round(length * scale)) for length in (height, width))
            image = comfy.utils.common_upscale(image.movedim(-1, 1), width, height, "lanczos", "disabled").movedim(
                1, -1
            )
            smaller += 1
        cropped += bool(height % vae.token_pixels or width % vae.token_pixels)
        fitted.append(image)
    if smaller or cropped:
        logging.info(
            f"VGT: of {len(images)} pictures {smaller} were made smaller, to the {side}x{side} pixels that the model "
            f"draws, and {cropped} cropped to whole tokens of {vae.token_pixels} pixels."
        )
    latents: list[Tensor | None] = [None] * len(images)
    sizes: dict[tuple, list[int]] = {}
    for index, image in enumerate(fitted):
        sizes.setdefault(tuple(image.shape), []).append(index)
    for alike in sizes.values():
        memory.throw_exception_if_processing_interrupted()
        for index, latent in zip(alike, vae.encode(torch.cat([fitted[index] for index in alike]))):
            latents[index] = latent
    return latents
