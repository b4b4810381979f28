"""GenEval and DPG-Bench: draw every prompt of the benchmark's own files into what its official scorer reads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tqdm import tqdm

from ..sampling import SamplingSettings
from .drawing import BATCH, batches, check_same_run, draw, process, to_image, write_whole

SAMPLES = 4
"""Pictures a prompt, in both benchmarks."""


def geneval(model, metadata: Path, folder: Path, settings: SamplingSettings, batch: int = BATCH) -> None:
    """Draw GenEval: `folder`/00000/metadata.jsonl and `folder`/00000/samples/0000.png to 0003.png, and so on.

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
    missing = [number for number in numbers if not sample(number).exists()]
    with _bar(numbers, missing) as bar:
        for some in batches(missing, batch):
            texts = [prompts[number // SAMPLES]["prompt"].strip() for number in some]
            for number, pixels in zip(some, draw(model, texts, some, settings)):
                _save(pixels, sample(number))
                bar.update()


def dpg(model, prompts: Path, folder: Path, settings: SamplingSettings, batch: int = BATCH) -> None:
    """Draw DPG-Bench: for each NAME.txt in `prompts` a `folder`/NAME.png that holds four samples, two by two.

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
    names = [folder / f"{file.stem}.png" for file in files]
    mine = list(_share(len(files)))
    missing = [index for index in mine if not names[index].exists()]
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
                _save(grid, names[index])
                bar.update()


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
    write_whole(path, lambda unfinished: to_image(pixels).save(unfinished, format="PNG"))
