"""Pictures that a command writes: checked before anything is drawn, with what they were drawn from inside."""

from __future__ import annotations

import json
import os
from pathlib import Path

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
METADATA_KEY = "vgt"
"""Of the text in a PNG: JSON with model, prompt, negative, index in the batch, and the settings."""


def picture_paths(output: Path, count: int, force: bool) -> list[Path]:
    """Where `count` pictures go: `output` itself, or -0, -1 … before its ending.

    Raises ValueError for an ending that is no format of pictures, OSError for a place where nothing can be written,
    FileExistsError for a file that is there already, unless `force`; numbered ones are the command's own and are
    written over.
    """
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"{output.name} has no ending of a picture; let it be one of {', '.join(FORMATS)}.")
    check_writable(output, force=force or count > 1)
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def check_writable(path: Path, force: bool) -> None:
    """Raises OSError, one sentence, where no file can be written to `path`, or where there is one and not `force`."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file.")
    if path.exists() and not force:
        raise FileExistsError(f"{path} is there already; choose another name, or --force to write over it.")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {place} is no folder.")
    if not os.access(path if path.exists() else place, os.W_OK):
        raise PermissionError(f"{path} cannot be written: no permission in {place}.")


def write_picture(picture, path: Path, drawn_from: dict | None = None) -> None:
    """Write a PIL image in the format that the path's ending names, folders included; a PNG carries `drawn_from`."""
    from PIL.PngImagePlugin import PngInfo

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix.lower() != ".png" else {}
    if drawn_from is not None and not options:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(METADATA_KEY, json.dumps(drawn_from))
    picture.save(path, FORMATS[path.suffix.lower()], **options)
    print(path)


def read_picture(path: Path):
    """A picture file as a PIL image, RGB, upright. Raises ValueError, one sentence, when it is none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture that can be read; give a PNG, JPEG or WebP.") from error


def whole_tokens(image, token_pixels: int, path: Path):
    """A PIL image, RGB, as pixels [1, 3, H, W] in [0, 1], cropped around its centre to whole tokens.

    Raises ValueError, naming `path`, for one smaller than a token.
    """
    import torch

    width, height = (side // token_pixels * token_pixels for side in image.size)
    if not width or not height:
        raise ValueError(f"{path} is {image.width}x{image.height}; it must be at least {token_pixels}x{token_pixels}.")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, height, width, 3)
    return pixels.movedim(-1, 1) / 255
