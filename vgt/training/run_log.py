"""What a run of training tells: metrics.jsonl, the progress bar, and which reviews are due."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from .settings import Settings

METRICS = "metrics.jsonl"


class RunLog:
    """Writes metrics.jsonl and the progress bar, in the first process only."""

    def __init__(self, folder: Path, first: int, settings: Settings, rank: int):
        self.settings, self.rank = settings, rank
        self.start, self.sums, self.count = time.monotonic(), {}, 0
        self.reviewed: set[int] = set()
        if rank == 0:
            kept = self._keep(folder / METRICS, first)
            self.reviewed = {line["step"] for line in kept if "loss" not in line}
            self.file = open(folder / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
            self.bar = tqdm(total=settings.steps, initial=first, unit="step", mininterval=5)

    @staticmethod
    def _keep(path: Path, first: int) -> list[dict]:
        """Drop what comes after step `first`, which is done again; returns what stays."""
        if not path.is_file():
            return []
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # of a line that was broken off
                kept.append(json.loads(line))
        kept = [line for line in kept if line["step"] <= first]
        partial = path.with_name(path.name + ".part")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)
        return kept

    def is_due(self, done: int) -> bool:
        """Whether a review comes after so many steps."""
        return done % self.settings.sheet_every == 0 or done == self.settings.steps

    def lacks_review(self, done: int) -> bool:
        """Whether one was due when the run was broken off."""
        return self.is_due(done) and done not in self.reviewed

    def step(self, step: int, rate: float, figures: dict[str, float]) -> None:
        if self.rank:
            return
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.bar.update()
        if (step + 1) % self.settings.log_every == 0:
            now = time.monotonic()
            line = {name: value / self.count for name, value in self.sums.items()}
            self.write({"step": step + 1, **line, "rate": rate, "seconds_per_step": (now - self.start) / self.count})
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in line.items()}, refresh=False)
            self.start, self.sums, self.count = now, {}, 0

    def review(self, step: int, figures: dict[str, float]) -> None:
        self.write({"step": step, **{f"held_out_{name}": value for name, value in figures.items()}})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        tqdm.write(f"step {step}: {shown}")

    def write(self, line: dict) -> None:
        self.file.write(json.dumps({key: round(value, 6) for key, value in line.items()}) + "\n")
        self.file.flush()

    def close(self) -> None:
        if self.rank == 0:
            self.bar.close()
            self.file.close()
