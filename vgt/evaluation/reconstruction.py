"""Scores the tokenizer: PSNR, SSIM and rFID of images that went through it and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..scenes.world import ScenesDataset

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def score(
    model,
    images: Iterator[Tensor],
    *,
    batch: int = 16,
    score_size: int | None = None,
    inception_weights: Path | None = None,
) -> dict:
    """Reconstruct images and compare.

    Args:
        images: [3, H, W] in [0, 1], H and W whole tokens. Those of one size are taken together.
        batch: images at once.
        score_size: pictures are made this large before they are compared (bilinear); the published figures are of
            448x448 images compared at 256. None compares them as they are.
        inception_weights: the FID Inception network, as torch-fidelity has it (the file
            weights-inception-2015-12-05-6726825d.pth); None leaves rFID out.

    Returns {"kind", "count", "psnr", "ssim"} and "rfid", None without weights. PSNR (dB) and SSIM (Gaussian window of
    11, sigma 1.5) are means over the images. Raises ValueError when there are none, or a library is missing.
    """
    try:
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    except ImportError as error:
        raise ValueError("This needs torchmetrics; pip install -r requirements-train.txt.") from error
    inception = _inception(inception_weights, model.device)
    psnr, ssim = [], []
    for originals in tqdm(_grouped(images, batch), unit="batch"):
        decoded = ((model.decode(model.encode(originals)) + 1) / 2).clamp(0, 1).cpu()
        if score_size is not None:
            originals, decoded = (
                F.interpolate(x, (score_size, score_size), mode="bilinear") for x in (originals, decoded)
            )
        each = {"data_range": 1.0, "reduction": "none"}
        psnr += peak_signal_noise_ratio(decoded, originals, dim=(1, 2, 3), **each).tolist()
        # In float64: the variances of plain areas are differences of nearly equal numbers.
        ssim += structural_similarity_index_measure(decoded.double(), originals.double(), **each).reshape(-1).tolist()
        if inception is not None:
            for pictures, real in ((originals, True), (decoded, False)):
                inception.update((pictures * 255).byte().to(model.device), real=real)
    if not psnr:
        raise ValueError("There are no images to reconstruct.")
    if inception is not None and len(psnr) < 2:
        raise ValueError("rFID compares distributions; give at least two images, better thousands.")
    return {
        "kind": "reconstruction",
        "count": len(psnr),
        "psnr": sum(psnr) / len(psnr),
        "ssim": sum(ssim) / len(ssim),
        "rfid": None if inception is None else inception.compute().item(),
    }


def folder_images(folder: Path, token_pixels: int, size: int | None = None) -> Iterator[Tensor]:
    """Read the images in a folder and those below it, sorted: [3, H, W] in [0, 1].

    With a size, each is resized to size x size, as in the published evaluation; without one, cropped in the middle
    to multiples of `token_pixels`. Raises ValueError for an image that cannot be read or is too small.
    """
    import numpy as np
    from PIL import Image, ImageOps

    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_ENDINGS):
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except Exception as error:  # Pillow raises SyntaxError for some damage, and errors of its own
            raise ValueError(f"{path} is not an image that can be read: {error}.") from error
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        width, height = (side // token_pixels * token_pixels for side in image.size)
        if not width or not height:
            least = f"{token_pixels}x{token_pixels}"
            raise ValueError(f"{path} is {image.width}x{image.height}; it must be at least {least}.")
        image = _crop(image, width, height)
        yield torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))


def scene_images(count: int, size: int, split: str = "test") -> Iterator[Tensor]:
    """Render `count` scenes of a fixed seed: [3, size, size] in [0, 1]."""
    dataset = ScenesDataset(size, seed=20_000, split=split, length=count)
    return (dataset[index][0] for index in range(count))


def _crop(image, width: int, height: int):
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _grouped(images: Iterator[Tensor], batch: int) -> Iterator[Tensor]:
    """Cut images into batches of consecutive ones of one size."""
    group: list[Tensor] = []
    for image in images:
        if group and (len(group) == batch or image.shape != group[0].shape):
            yield torch.stack(group)
            group = []
        group.append(image)
    if group:
        yield torch.stack(group)


def _inception(weights: Path | None, device):
    if weights is None:
        return None
    if not Path(weights).is_file():
        raise FileNotFoundError(f"There are no Inception weights at {weights}.")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return FrechetInceptionDistance(feature_extractor_weights_path=str(weights)).to(device)
    except ImportError as error:
        raise ValueError("rFID needs torch-fidelity; pip install torch-fidelity.") from error
