"""The command line: python -m vgt convert | generate | merge | reconstruct | latent-rgb | train | evaluate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import add_settings, read_settings, read_strength
from .files.hub import HubError
from .picture_files import FORMATS, check_writable, picture_paths, read_picture, whole_tokens, write_picture
from .steering_arguments import add_steering, read_steering, write_latent


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors a user can mend are one sentence on stderr."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "texts") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.texts += rest  # what stands behind an option
    try:
        options.run(options)
    except (ValueError, OSError, HubError) as error:
        print(f"vgt: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"There is no {error.filename}; check the name."
    return f"{error.filename} cannot be used: {error.strerror}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vgt", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="turn a published checkpoint into one .safetensors file")
    convert.add_argument("source", type=Path, help="a folder in the published layout, or a weight file in one")
    convert.add_argument("target", type=Path, help="the .safetensors file to write")
    _add_force(convert)
    convert.set_defaults(run=_convert)

    generate = commands.add_parser("generate", help="draw an image from a prompt")
    _add_model(generate)
    generate.add_argument(
        "texts",
        nargs="+",
        metavar="PROMPT … OUTPUT",
        help=f"what to draw, one prompt or several, and the picture to write ({', '.join(FORMATS)}); of several "
        "pictures -0, -1 … stand before the ending",
    )
    generate.add_argument("--prompts-file", type=Path, metavar="FILE", help="a text file with a prompt a line")
    generate.add_argument("--negative", default=None, help="what to stay away from (default: nothing)")
    add_settings(generate)
    add_steering(generate)
    generate.add_argument("--lora", action="append", default=[], metavar="FILE:STRENGTH", help="may be repeated")
    generate.add_argument("--compile", action="store_true", help="compile the network first, for many pictures")
    generate.add_argument("--batch", type=int, default=1, help="pictures of each prompt (default: 1)")
    _add_force(generate)
    generate.set_defaults(run=_generate)

    merge = commands.add_parser("merge", help="write a model with a LoRA merged into it")
    merge.add_argument("model", type=Path, help="a model file, or a folder in the published layout")
    merge.add_argument("lora", metavar="LORA", help="the LoRA's .safetensors; FILE:0.8 merges less of it")
    merge.add_argument("out", type=Path, help="the .safetensors file to write")
    _add_force(merge)
    merge.set_defaults(run=_merge)

    reconstruct = commands.add_parser("reconstruct", help="push an image through the tokenizer and back")
    _add_model(reconstruct)
    reconstruct.add_argument("image", type=Path)
    reconstruct.add_argument("output", type=Path, help=f"the picture to write ({', '.join(FORMATS)})")
    _add_force(reconstruct)
    reconstruct.set_defaults(run=_reconstruct)

    latent_rgb = commands.add_parser("latent-rgb", help="write a model that shows previews without its decoder too")
    latent_rgb.add_argument("model", type=Path, help="a model file, or a folder in the published layout")
    latent_rgb.add_argument("pictures", type=Path, help="a folder of pictures as the model's; a hundred will do")
    latent_rgb.add_argument("out", type=Path, help="the .safetensors file to write")
    _add_force(latent_rgb)
    latent_rgb.set_defaults(run=_latent_rgb)

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
    parser.add_argument("--device", help="cpu, cuda, mps … (default: cuda where there is one, else cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="to compute in (default: float32 on the CPU, bfloat16 elsewhere)",
    )


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="write over a file that is there")


def _load(options):
    import torch

    from . import load

    device = _usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return load(options.model, device, options.dtype and getattr(torch, options.dtype))


def _usable_device(name: str):
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"--device {name} cannot be used here ({reason}); leave it out, or choose cpu.") from error
    return device


def _convert(options) -> None:
    from .files.reading import convert

    check_writable(options.target, options.force)
    convert(options.source, options.target)
    print(f"{options.target} ({options.target.stat().st_size / 1e6:.0f} MB)")


def _merge(options) -> None:
    from .lora import merge_file

    check_writable(options.out, options.force)
    lora, strength = read_strength(options.lora)
    merge_file(options.model, lora, options.out, strength)
    print(f"{options.out} ({options.out.stat().st_size / 1e6:.0f} MB)")


def _generate(options) -> None:
    from tqdm import tqdm

    from .model import to_image
    from .run.record import RunRecord

    *prompts, output = options.texts
    if options.prompts_file is not None:
        prompts += _read_lines(options.prompts_file)
    if not prompts:
        raise ValueError(f"There is no prompt, only {output}; give prompt and output, or --prompts-file and output.")
    if len(prompts) > 1 and (options.plan or options.latent or options.go_on):
        raise ValueError("--plan, --latent and --go-on are of one prompt; leave the others out.")
    if options.batch < 1:
        raise ValueError(f"--batch is {options.batch}; it must be at least 1.")
    paths = picture_paths(Path(output), len(prompts) * options.batch, options.force)
    for path in (options.plan, options.latent):
        if path is not None:
            check_writable(path, options.force)
    model = _load(options)
    for lora in options.lora:
        model = model.with_lora(*read_strength(lora))
    settings = read_settings(options, model.recommended)
    side = model.config.token_pixels
    steering = read_steering(options, (settings.height // side, settings.width // side))
    record = RunRecord() if options.plan else None
    if model.tokenizer is not None:
        for prompt in prompts:
            if unknown := model.tokenizer.never_seen(prompt):
                print(f"vgt: never seen: {', '.join(unknown)}", file=sys.stderr)
    remaining = iter(paths)
    for prompt in prompts:  # one after the other: a batch of several would pad, which published decoding sees
        with tqdm(unit="token", delay=0.001) as bar:  # not shown for a run that does not begin

            def progress(state, bar=bar):
                bar.total = state.total
                bar.update(state.done - bar.n)

            latent = model.generate(
                [prompt] * options.batch,
                options.negative,
                **vars(settings),
                **steering,
                record=record,
                compile=options.compile,
                progress=progress,
            )
        if options.latent is not None:
            write_latent(latent, options.latent, options.model.name)
        if record is not None:
            record.picture().save(options.plan)
            print(options.plan)
        said = {"model": options.model.name, "prompt": prompt, "negative": options.negative, **settings.to_dict()}
        for index, pixels in enumerate(model.decode(latent)):
            write_picture(to_image(pixels), next(remaining), {**said, "index": index})


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8; save it as such, with a prompt a line.") from error
    return [line.strip() for line in lines if line.strip()]


def _latent_rgb(options) -> None:
    from .latent_rgb import add_to_file

    check_writable(options.out, options.force)
    count = add_to_file(options.model, options.pictures, options.out)
    print(f"{options.out}, with colours learnt from {count} pictures")


def _reconstruct(options) -> None:
    from .model import to_image

    image = read_picture(options.image)
    (path,) = picture_paths(options.output, 1, options.force)
    model = _load(options)
    original = whole_tokens(image, model.config.token_pixels, options.image)
    decoded = model.decode(model.encode(original)).cpu()
    write_picture(to_image(decoded[0]), path)
    error = (((decoded + 1) / 2).clamp(0, 1) - original).square().mean()
    print(f"PSNR {-10 * error.log10():.2f} dB")


if __name__ == "__main__":
    sys.exit(main())
