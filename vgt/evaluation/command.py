"""The command line: python -m vgt evaluate scenes | lesson | reconstruction | geneval | dpg | mjhq | oneig | sweep |
frontier | results."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from ..arguments import add_settings, read_settings, read_strength
from ..run.flow import FlowSettings
from ..sampling import PUBLISHED, SamplingSettings
from ..scenes.lessons import LESSONS

MANY_STEPS = replace(PUBLISHED, flow=FlowSettings(steps=100))
"""As the authors draw for DPG-Bench and MJHQ-30K."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `evaluate` to its parser."""
    commands = parser.add_subparsers(required=True, metavar="SCORE")

    scenes = commands.add_parser("scenes", help="draw held-out scenes and judge them by rules")
    _add_model(scenes)
    _add_drawing(scenes)
    scenes.add_argument("--count", type=int, default=300, help="prompts; the categories in turn")
    scenes.add_argument("--split", choices=("test", "train"), default="test", help="test: held-out combinations")
    scenes.add_argument("--pictures", type=Path, default=None, help="a folder for the pictures")
    scenes.add_argument("--drawings", type=Path, default=None, help="as many prompts of this folder of drawings, too")
    _add_result(scenes)
    scenes.set_defaults(score=_scenes)

    lesson = commands.add_parser("lesson", help="what a LoRA has taught a model (docs/lora.md), judged by rules")
    _add_model(lesson)
    lesson.add_argument("lesson", choices=LESSONS, help="what it was taught")
    _add_drawing(lesson)
    lesson.add_argument("--count", type=int, default=60, help="prompts")
    lesson.add_argument("--pictures", type=Path, default=None, help="a folder for the pictures")
    _add_result(lesson)
    lesson.set_defaults(score=_lesson)

    reconstruction = commands.add_parser("reconstruction", help="PSNR, SSIM and rFID of the tokenizer")
    _add_model(reconstruction)
    source = reconstruction.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", nargs="?", type=Path, help="a folder of images")
    source.add_argument("--scenes", type=int, metavar="N", help="N held-out scenes instead")
    reconstruction.add_argument("--drawings", type=Path, default=None, help="scenes of this folder of drawings, at 224")
    reconstruction.add_argument("--size", type=int, default=None, help="resize to this; 112 for scenes")
    reconstruction.add_argument("--score-size", type=int, default=None, help="compare at this size (published: 256)")
    reconstruction.add_argument("--batch", type=int, default=16)
    reconstruction.add_argument("--inception-weights", type=Path, default=None, help="for rFID; not measured without")
    _add_result(reconstruction)
    reconstruction.set_defaults(score=_reconstruction)

    geneval = commands.add_parser("geneval", help="draw GenEval's prompts into the folders its scorer reads")
    _add_model(geneval)
    geneval.add_argument("metadata", type=Path, help="the benchmark's evaluation_metadata.jsonl")
    geneval.add_argument("folder", type=Path, help="where the pictures go; what is there is kept")
    _add_drawing(geneval)
    geneval.set_defaults(score=_geneval)

    dpg = commands.add_parser("dpg", help="draw DPG-Bench's prompts into the pictures its scorer reads")
    _add_model(dpg)
    dpg.add_argument("prompts", type=Path, help="the benchmark's folder of .txt prompts")
    dpg.add_argument("folder", type=Path, help="where the pictures go; what is there is kept")
    _add_drawing(dpg, MANY_STEPS)
    dpg.set_defaults(score=_dpg)

    mjhq = commands.add_parser("mjhq", help="draw MJHQ-30K's prompts into the folders of its reference pictures")
    _add_model(mjhq)
    mjhq.add_argument("metadata", type=Path, help="the benchmark's meta_data.json")
    mjhq.add_argument("folder", type=Path, help="where the pictures go; what is there is kept")
    _add_drawing(mjhq, MANY_STEPS)
    mjhq.set_defaults(score=_mjhq)

    oneig = commands.add_parser("oneig", help="draw OneIG-Bench's prompts into the folders its scorers read")
    _add_model(oneig)
    oneig.add_argument("prompts", type=Path, help="the benchmark's OneIG-Bench.csv or OneIG-Bench-ZH.csv")
    oneig.add_argument("folder", type=Path, help="where the pictures go; what is there is kept")
    oneig.add_argument("--name", default=None, help="the model's name there (default: its file's)")
    _add_drawing(oneig)
    oneig.set_defaults(score=_oneig)

    sweep = commands.add_parser("sweep", help="the scenes score against one setting, a result file each")
    _add_model(sweep)
    sweep.add_argument("setting", choices=("tokens-per-step", "steps", "cfg"))
    sweep.add_argument("folder", type=Path, help="where the results go; what is there is kept")
    sweep.add_argument("--count", type=int, default=300, help="prompts a setting")
    sweep.add_argument("--label", default=None, help="the name of the curve")
    sweep.add_argument("--drawings", type=Path, default=None, help="prompts of this folder of drawings, not of shapes")
    _add_drawing(sweep)
    sweep.set_defaults(score=_sweep)

    frontier = commands.add_parser("frontier", help="ways to use the flow head: score, time, how much pictures differ")
    _add_model(frontier)
    frontier.add_argument("folder", type=Path, help="where the results go; what is there is kept")
    frontier.add_argument("--count", type=int, default=300, help="prompts a way")
    _add_drawing(frontier)
    frontier.set_defaults(score=_frontier)

    results = commands.add_parser("results", help="results into a Markdown table and a curve")
    results.add_argument("results", type=Path, nargs="+", help="result files, or folders of them")
    results.add_argument("--table", type=Path, default=None, help="the .md to write; it is printed without")
    results.add_argument("--plot", type=Path, default=None, help="the .png to write")
    results.add_argument("--against", default="tokens_per_step", help="tokens_per_step, steps, cfg or training_step")
    results.set_defaults(score=_results)


def run(options) -> None:
    """Run the command that was parsed. Raises ValueError and OSError with one sentence for the user."""
    options.score(options)


def _add_model(parser) -> None:
    parser.add_argument(
        "model", type=Path, help="a model file, a folder in the published layout, or a published model's name"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, mps …; the best there is by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None)
    parser.add_argument("--lora", action="append", default=[], metavar="FILE:STRENGTH", help="may be repeated")


def _add_drawing(parser, published: SamplingSettings = PUBLISHED) -> None:
    add_settings(parser, published)
    parser.add_argument("--size", type=int, help="width and height in one")
    parser.add_argument("--batch", type=int, default=16, help="pictures at once (default: %(default)s)")
    parser.set_defaults(published=published)


def _add_result(parser) -> None:
    parser.add_argument("--json", type=Path, default=None, help="a file for the result")
    parser.add_argument("--label", default=None, help="the result's name in tables and curves")
    parser.add_argument("--training-step", type=int, default=None, help="when the model was saved, for curves")


def _settings(options, model) -> SamplingSettings:
    if model.config.generator is None:
        raise ValueError(f"{options.model} is a tokenizer only and cannot draw; give a full VGT model.")
    if options.size is not None:
        options.width = options.height = options.size
    return read_settings(options, model.recommended, options.published)


def _load(options):
    import torch

    from ..model import load

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    model = load(options.model, device, options.dtype and getattr(torch, options.dtype))
    for lora in options.lora:
        model = model.with_lora(*read_strength(lora))
    return model


def _finish(options, result: dict) -> None:
    if options.json is not None:
        from .sweep import write

        named = {"label": options.label, "training_step": options.training_step, "model": options.model.name}
        write({**named, **result}, options.json)
        print(options.json)


def _scenes(options) -> None:
    from ..scenes.drawings import Drawings
    from . import drawn_scenes
    from .scenes import score, table

    model = _load(options)
    settings = _settings(options, model)
    how = {"split": options.split, "folder": options.pictures, "batch": options.batch}
    folder = options.drawings and Drawings(options.drawings)  # before anything is drawn
    result = score(model, options.count, settings, **how)
    print(table(result))
    if folder is not None:
        how["folder"] = options.pictures and options.pictures / "drawings"
        result["drawings"] = drawn_scenes.score(model, folder, options.count, settings, **how)
        print("\n" + table(result["drawings"]))
    _finish(options, result)


def _lesson(options) -> None:
    from .lessons import score

    model = _load(options)
    count, settings = options.count, _settings(options, model)
    result = score(model, options.lesson, count, settings, folder=options.pictures, batch=options.batch)
    print(f"{options.lesson}: {result['score']:.3f} of {count} prompts drawn right")
    _finish(options, result)


def _reconstruction(options) -> None:
    from ..scenes.drawings import Drawings
    from .drawn_scenes import drawing_images, reconstructed
    from .reconstruction import folder_images, scene_images, score

    model = _load(options)
    drawings = options.drawings and Drawings(options.drawings)
    if drawings is not None and options.scenes is None:
        raise ValueError("--drawings needs --scenes N, how many of them.")
    if drawings is not None:
        images = drawing_images(drawings, options.scenes, options.size or 224)
    elif options.scenes is not None:
        images = scene_images(options.scenes, options.size or 112)
    else:
        images = folder_images(options.folder, model.config.token_pixels, options.size)
    result = score(
        model,
        images,
        batch=options.batch,
        score_size=options.score_size,
        inception_weights=options.inception_weights,
    )
    rfid = "not measured (no --inception-weights)" if result["rfid"] is None else f"{result['rfid']:.3f}"
    print(f"{result['count']} images: PSNR {result['psnr']:.2f} dB, SSIM {result['ssim']:.4f}, rFID {rfid}")
    if drawings is not None:
        told = reconstructed(model, drawings, options.scenes, options.size or 224, options.batch)
        result["recognised"] = told
        print(f"Told for what they are: {told['score']:.3f}")
    _finish(options, result)


def _geneval(options) -> None:
    from .benchmarks import geneval

    model = _load(options)
    geneval(model, options.metadata, options.folder, _settings(options, model), options.batch)
    print(
        f"Score them with GenEval's own script: evaluation/evaluate_images.py {options.folder} --outfile results.jsonl"
    )


def _dpg(options) -> None:
    from .benchmarks import dpg

    model = _load(options)
    settings = _settings(options, model)
    dpg(model, options.prompts, options.folder, settings, options.batch)
    print(
        f"Score them with DPG-Bench's own script: dpg_bench/compute_dpg_bench.py --image-root-path {options.folder} "
        f"--resolution {settings.height} --pic-num 4 --vqa-model mplug"
    )


def _mjhq(options) -> None:
    from .benchmarks import mjhq

    model = _load(options)
    mjhq(model, options.metadata, options.folder, _settings(options, model), options.batch)
    print(f'Score them with clean-fid: fid.compute_fid("mjhq30k_imgs", "{options.folder}")')


def _oneig(options) -> None:
    from .benchmarks import oneig

    model = _load(options)
    name = options.name or options.model.name.removesuffix(".safetensors").removesuffix(".pth")
    oneig(model, options.prompts, options.folder, name, _settings(options, model), options.batch)
    print(
        f"Score them with OneIG-Bench's own scripts: run_overall.sh with IMAGE_DIR={options.folder} "
        f"MODEL_NAMES={name} and the image grid 2,2"
    )


def _sweep(options) -> None:
    from ..scenes.drawings import Drawings
    from ..scenes.recogniser import Recogniser
    from .sweep import run as sweep

    model = _load(options)
    settings = _settings(options, model)
    recogniser = options.drawings and Recogniser(Drawings(options.drawings))
    sweep(model, options.setting, options.folder, options.count, settings, options.label, options.batch, recogniser)


def _frontier(options) -> None:
    from .frontier import markdown
    from .frontier import run as frontier

    model = _load(options)
    print(markdown(frontier(model, options.folder, options.count, _settings(options, model), options.batch)))


def _results(options) -> None:
    from .results import markdown, plot, read

    results = read(options.results)
    if options.table is None:
        print(markdown(results), end="")
    else:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(markdown(results), encoding="utf-8")
        print(options.table)
    if options.plot is not None:
        plot(results, options.against, options.plot)
        print(options.plot)
