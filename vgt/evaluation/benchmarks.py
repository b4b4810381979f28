"""Draws the published benchmarks: every prompt of a benchmark's own files, into what its official scorer reads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from ..sampling import SamplingSettings
from .drawing import BATCH, batches, check_same_run, draw, process, to_image, write_whole

SAMPLES = 4
"""Pictures a prompt, in all of them but MJHQ-30K."""
ONEIG_FOLDERS = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
"""Where OneIG-Bench's scorers look for the pictures of a category."""


def geneval(model, metadata: Path, folder: Path, settings: SamplingSettings, batch: int = BATCH) -> None:
    """Draw GenEval into `folder`/00000/metadata.jsonl and `folder`/00000/samples/0000.png to 0003.png, and so on.

    Args:
        metadata: the benchmark's prompts/evaluation_metadata.jsonl, one object with a "prompt" a line.

    What is there already is kept. Raises ValueError for a file that is no such list, or a folder of another run.
    Source: djghosh13/geneval, evaluation/evaluate_images.py.
    """
    prompts = _read_metadata(metadata)
    check_same_run(folder, settings, model, [entry["prompt"] for entry in prompts])
    places = [folder / f"{index:05}" for index in range(len(prompts))]
    for index in _share(len(prompts)):
        line = json.dumps(prompts[index]) + "\n"
        write_whole(places[index] / "metadata.jsonl", lambda path, line=line: path.write_text(line, encoding="utf-8"))

    def sample(number: int) -> Path:
        return places[number // SAMPLES] / "samples" / f"{number % SAMPLES:04}.png"

    numbers = [SAMPLES * index + k for index in _share(len(prompts)) for k in range(SAMPLES)]
    _draw_pictures(model, numbers, lambda n: prompts[n // SAMPLES]["prompt"].strip(), sample, settings, batch)


def dpg(model, prompts: Path, folder: Path, settings: SamplingSettings, batch: int = BATCH) -> None:
    """Draw DPG-Bench: each NAME.txt in `prompts` into a `folder`/NAME.png that holds four samples, two by two.

    A prompt is the first line of its file, as in the published evaluation. What is there already is kept. Raises
    ValueError for a folder without prompts, an empty prompt, or a folder of another run.
    Source: ELLA, dpg_bench/compute_dpg_bench.py; the scorer's --resolution is the side of a picture, its --pic-num 4.
    """
    files = sorted(prompts.glob("*.txt"))
    if not files:
        raise ValueError(f"There are no .txt files in {prompts}; give DPG-Bench's folder of prompts.")
    texts = [file.read_text(encoding="utf-8").partition("\n")[0].strip() for file in files]
    for file, text in zip(files, texts):
        if not text:
            raise ValueError(f"{file} does not begin with a prompt.")
    check_same_run(folder, settings, model, [f"{file.stem}: {text}" for file, text in zip(files, texts)])
    _draw_grids(model, texts, [folder / f"{file.stem}.png" for file in files], settings, batch)


def mjhq(model, metadata: Path, folder: Path, settings: SamplingSettings, batch: int = BATCH) -> None:
    """Draw MJHQ-30K into `folder`/CATEGORY/ID.png, one picture a prompt, named as the reference pictures are.

    Args:
        metadata: the benchmark's meta_data.json, {ID: {"category": …, "prompt": …}}.

    What is there already is kept. Raises ValueError for a file that is no such list, or a folder of another run.
    Source: playgroundai/MJHQ-30K; its score is clean-fid's FID of the folder against mjhq30k_imgs.
    """
    advice = "give MJHQ-30K's meta_data.json"
    try:
        listed = json.loads(metadata.read_text(encoding="utf-8"))
        entries = [(name, entry["category"], entry["prompt"].strip()) for name, entry in listed.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{metadata} is no list of categories and prompts by picture; {advice}.") from error
    if not entries:
        raise ValueError(f"{metadata} is empty; {advice}.")
    places = [
        folder / _checked_name(category, metadata) / f"{_checked_name(name, metadata)}.png"
        for name, category, _ in entries
    ]
    check_same_run(folder, settings, model, [f"{category}/{name}: {text}" for name, category, text in entries])
    _draw_pictures(model, _share(len(entries)), lambda n: entries[n][2], lambda n: places[n], settings, batch)


def oneig(model, prompts: Path, folder: Path, name: str, settings: SamplingSettings, batch: int = BATCH) -> None:
    """Draw OneIG-Bench into `folder`/anime/NAME/000.webp and so on, each holding four samples, two by two.

    Args:
        prompts: the benchmark's OneIG-Bench.csv (English) or OneIG-Bench-ZH.csv (Chinese).
        name: of the model, which the scorers take under --model_names; a folder holds the pictures of several.

    What is there already is kept. Raises ValueError for a file that is no such table, or pictures of another run under
    this name. Source: OneIG-Bench/OneIG-Benchmark, text2image.py; the scorers' --image_grid is 2,2.
    """
    places, texts = [], []
    with open(prompts, encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            category, number = row.get("category"), row.get("id")
            text = (row.get("prompt_en") or row.get("prompt_cn") or "").strip()
            if category not in ONEIG_FOLDERS or not number or not text:
                raise ValueError(
                    f"{prompts}, prompt {len(texts) + 1}: there is no category of OneIG-Bench, id or prompt; "
                    "give OneIG-Bench.csv or OneIG-Bench-ZH.csv."
                )
            places.append(
                folder
                / ONEIG_FOLDERS[category]
                / _checked_name(name, prompts)
                / f"{_checked_name(number, prompts)}.webp"
            )
            texts.append(text)
    if not texts:
        raise ValueError(f"{prompts} is empty; give OneIG-Bench.csv or OneIG-Bench-ZH.csv.")
    check_same_run(folder / name, settings, model, [f"{place.parts[-3:]}: {t}" for place, t in zip(places, texts)])
    _draw_grids(model, texts, places, settings, batch)


def _draw_pictures(
    model,
    numbers: Iterable[int],
    text: Callable[[int], str],
    place: Callable[[int], Path],
    settings: SamplingSettings,
    batch: int,
) -> None:
    """Draw the pictures of these numbers in the run that are not in their place yet."""
    numbers = list(numbers)
    missing = [number for number in numbers if not place(number).exists()]
    with _bar(numbers, missing) as bar:
        for some in batches(missing, batch):
            for number, pixels in zip(some, draw(model, [text(number) for number in some], some, settings)):
                _save(pixels, place(number))
                bar.update()


def _draw_grids(model, texts: list[str], places: list[Path], settings: SamplingSettings, batch: int) -> None:
    """Draw four samples of each text, two by two in one file, where it is not in its place yet."""
    mine = list(_share(len(texts)))
    missing = [index for index in mine if not places[index].exists()]
    with _bar(mine, missing) as bar:
        at_once = max(1, batch // SAMPLES)
        for start in range(0, len(missing), at_once):
            group = missing[start : start + at_once]
            numbers = [SAMPLES * index + k for index in group for k in range(SAMPLES)]
            drawn = [
                draw(model, [texts[number // SAMPLES] for number in some], some, settings)
                for some in batches(numbers, batch)
            ]
            for index, four in zip(group, torch.cat(drawn).split(SAMPLES)):
                grid = torch.cat((torch.cat((four[0], four[1]), dim=2), torch.cat((four[2], four[3]), dim=2)), dim=1)
                _save(grid, places[index])
                bar.update()


def _checked_name(text: str, source: Path) -> str:
    """Check a name that a benchmark's file or a user gives to a file or folder. ValueError if it leads elsewhere."""
    if not isinstance(text, str) or text.startswith(".") or not text or {*"/\\:"} & {*text}:
        raise ValueError(f"{text!r} cannot be the name of a folder or picture for {source}.")
    return text


def _read_metadata(path: Path) -> list[dict]:
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ValueError(f'{path}, line {number}: there is no "prompt"; give GenEval\'s evaluation_metadata.jsonl.')
        prompts.append(entry)
    if not prompts:
        raise ValueError(f"{path} is empty; give GenEval's evaluation_metadata.jsonl.")
    return prompts


def _share(count: int) -> range:
    rank, processes = process()
    return range(rank, count, processes)


def _bar(all_of_it, missing) -> tqdm:
    total = len(all_of_it)
    return tqdm(total=total, initial=total - len(missing), unit="picture", disable=process()[0] > 0)


def _save(pixels, path: Path) -> None:
    kind = path.suffix[1:].upper()  # WEBP as the official scripts save it, at Pillow's own quality
    write_whole(path, lambda unfinished: to_image(pixels).save(unfinished, format=kind))
