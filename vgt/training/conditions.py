"""Records what a distilled head learns from: conditions of the language model in its runs.

A run draws some captions as anybody would, at one of several settings; of the conditions that it gives to the flow head
some are kept, early ones rather than late ones: they leave most open.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..prompt import PromptTokenizer
from ..run.flow import FlowSettings
from ..run.generation import Generator, generate
from ..run.order import draw_order
from ..run.plan import DECODINGS, cut_groups
from ..run.planning import published_scales
from ..sampling import SamplingSettings
from .processes import rank_and_world
from .settings import TrainingError

_KEY = "conditions"


@dataclass(frozen=True)
class Recording:
    """What is recorded."""

    runs: int = 240
    """Runs, each a file."""
    batch: int = 64
    """Pictures a run."""
    kept: int = 256
    """Conditions that are kept of a run."""
    cfg: tuple[float, ...] = (4.5, 4.5, 3.0, 2.0, 7.0)
    """Guidance scales of the runs; so are the next."""
    tokens_per_step: tuple[int, ...] = (1, 1, 1, 2, 4)
    seed: int = 0


def recorded_conditions(
    folder: Path,
    generator: Generator,
    tokenizer: PromptTokenizer,
    captions: Sequence[str],
    size: tuple[int, int],
    recording: Recording,
    weights: str,
    device,
) -> dict[str, Tensor]:
    """Record into `folder` what is missing there, every process a part, and read all of it.

    Args:
        captions: what the runs draw, from the first on, and again from the first where they are too few.
        size: height and width in pixels. weights: the digest of the generator's.

    Returns condition and free [N, D], float16, and cfg [N], on the CPU. Raises TrainingError when the folder holds
    something else.
    """
    rank, world = rank_and_world()
    about = json.loads(json.dumps({**asdict(recording), "weights": weights, "size": size}))
    about.pop("runs")  # more may follow
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{index:06}.safetensors" for index in range(recording.runs)]
    for file in files:
        if file.exists():
            _check(file, about)
    if world > 1:
        dist.barrier()  # or some would count what others have just written
    missing = [index for index, file in enumerate(files) if not file.exists()]
    for index in tqdm(missing[rank::world], desc="recording", unit="run", disable=rank > 0, mininterval=5):
        first = index * recording.batch
        asked = [captions[number % len(captions)] for number in range(first, first + recording.batch)]
        rows = _record(generator, tokenizer, asked, size, recording, index, device)
        unfinished = files[index].with_name(f"{files[index].name}.{os.getpid()}.part")
        save_file(rows, unfinished, {_KEY: json.dumps(about)})
        os.replace(unfinished, files[index])
    if world > 1:
        dist.barrier()
    parts = []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            parts.append({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118 - no dict
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _check(file: Path, about: dict) -> None:
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {})[_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"{file} holds no conditions; give them a folder of their own.") from error
    if found != about:
        names = ", ".join(sorted(name for name in about if found.get(name) != about[name]))
        raise TrainingError(f"{file.parent} holds conditions of other {names}; remove it to record again.")


@torch.no_grad()
def _record(generator, tokenizer, captions, size, recording: Recording, index: int, device) -> dict[str, Tensor]:
    """Record one run's conditions; all that is drawn follows from the seed and the run's number."""
    chance = random.Random(f"conditions {recording.seed} {index}")
    rng = torch.Generator().manual_seed(recording.seed * 1_000_003 + index)
    settings = SamplingSettings(
        *size,
        seed=recording.seed * 1_000_003 + index,
        cfg=chance.choice(recording.cfg),
        tokens_per_step=chance.choice(recording.tokens_per_step),
        decoding=chance.choice(DECODINGS),
        flow=FlowSettings(8, 0.08, "euler"),
    )
    seen: list[Tensor] = []  # [rows, group, D] of each step, conditional rows first
    hook = generator.image_out_projector.register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        generate(generator, tokenizer, captions, None, settings, device=device, graphs=False)
    finally:
        hook.remove()
    scales = published_scales(settings.cfg, "linear", len(seen))
    grid = [side // generator.token_pixels for side in size]
    groups = cut_groups(draw_order(*grid, "random", settings.seed), settings.tokens_per_step)
    images = len(captions)
    condition = torch.cat([states[:images].flatten(0, 1) for states in seen])
    free = torch.cat([states[images:].flatten(0, 1) for states in seen])
    cfg = torch.cat([torch.full((images * len(group),), scale) for group, scale in zip(groups, scales, strict=True)])
    drawn = torch.cat([torch.full((images * len(group),), float(step)) for step, group in enumerate(groups)])
    chosen = torch.multinomial(1 + 3 * torch.exp(-drawn), min(recording.kept, len(drawn)), generator=rng)
    rows = {"condition": condition[chosen.to(condition.device)].half(), "free": free[chosen.to(free.device)].half()}
    return {name: tensor.cpu().contiguous() for name, tensor in (rows | {"cfg": cfg[chosen]}).items()}
