"""The command line: python -m vgt convert | generate | reconstruct | train | evaluate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import add_settings, read_settings
from .files.hub import HubError
from .steering_arguments import add_steering, read_steering, write_latent


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors a user can mend are one sentence on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, HubError) as error:
        print(f"vgt: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vgt", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="turn a published checkpoint into one .safetensors file")
    convert.add_argument("source", type=Path, help="a folder in the published layout, or a weight file in one")
    convert.add_argument("target", type=Path, help="the .safetensors file to write")
    convert.set_defaults(run=_convert)

    generate = commands.add_parser("generate", help="draw an image from a prompt")
    _add_model(generate)
    generate.add_argument("prompt")
    generate.add_argument("output", type=Path, help="the PNG to write; with --batch, -0, -1 … are put before .png")
    generate.add_argument("--negative", default=None, help="what to stay away from")
    add_settings(generate)
    add_steering(generate)
    generate.add_argument("--batch", type=int, default=1, help="images to draw")
    generate.set_defaults(run=_generate)

    reconstruct = commands.add_parser("reconstruct", help="push an image through the tokenizer and back")
    _add_model(reconstruct)
    reconstruct.add_argument("image", type=Path)
    reconstruct.add_argument("output", type=Path, help="the PNG to write")
    reconstruct.set_defaults(run=_reconstruct)

    from .evaluation import command as evaluation
    from .training import command as training

    for name, command, text in (("train", training, "tune a model"), ("evaluate", evaluation, "score a model")):
        subparser = commands.add_parser(name, help=text)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, help="a model file, a folder in the published layout, or a published model's name"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, mps …; the best there is by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None)


def _load(options):
    import torch

    from . import load

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load(options.model, device, options.dtype and getattr(torch, options.dtype))


def _convert(options) -> None:
    from .files.checkpoint import convert

    convert(options.source, options.target)
    print(f"{options.target} ({options.target.stat().st_size / 1e6:.0f} MB)")


def _generate(options) -> None:
    from tqdm import tqdm

    from .run.record import RunRecord

    model = _load(options)
    settings = read_settings(options, model.recommended)
    side = model.config.token_pixels
    steering = read_steering(options, (settings.height // side, settings.width // side))
    record = RunRecord() if options.plan else None
    with tqdm(unit="token", delay=0.001) as bar:  # not shown for a run that does not begin

        def progress(state):
            bar.total = state.total
            bar.update(state.done - bar.n)

        latent = model.generate(
            [options.prompt] * options.batch,
            options.negative,
            **vars(settings),
            **steering,
            record=record,
            progress=progress,
        )
    if options.latent is not None:
        write_latent(latent, options.latent)
    if record is not None:
        record.picture().save(options.plan)
        print(options.plan)
    for index, pixels in enumerate(model.decode(latent)):
        name = f"{options.output.stem}-{index}" if options.batch > 1 else options.output.stem
        _write_png(pixels, options.output.with_name(name + ".png"))


def _reconstruct(options) -> None:
    import torch
    from PIL import Image, ImageOps

    with Image.open(options.image) as image:
        image = ImageOps.exif_transpose(image).convert("RGB")
    model = _load(options)
    side = model.config.token_pixels
    width, height = image.width // side * side, image.height // side * side
    if not width or not height:
        raise ValueError(f"{options.image} is {image.width}x{image.height}; it must be at least {side}x{side}.")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, height, width, 3).movedim(-1, 1)
    original = pixels / 255
    decoded = model.decode(model.encode(original)).cpu()
    _write_png(decoded[0], options.output)
    error = (((decoded + 1) / 2).clamp(0, 1) - original).square().mean()
    print(f"PSNR {-10 * error.log10():.2f} dB")


def _write_png(pixels, path: Path) -> None:
    """pixels [3, H, W] in [-1, 1]; what lies outside is clamped."""
    from .model import to_image

    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(pixels).save(path)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
