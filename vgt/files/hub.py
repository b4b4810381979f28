"""The published models: which files they are made of, and one converted file from them.

Nothing is downloaded, and huggingface_hub is not imported, before a model is asked for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .durable import put_in_place
from .transfer import (
    NO_SPACE,
    BadFile,
    Check,
    DiskFull,
    HubError,
    HubFile,
    Offline,
    Progress,
    Transfer,
    cached_files,
    disk_errors,
    locked,
    partial_path,
    size_of,
)

__all__ = [
    "PUBLISHED",
    "BadFile",
    "DiskFull",
    "HubError",
    "Offline",
    "Published",
    "download",
    "missing_files_message",
    "obtain",
]

DC_AE = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

WORK = ".download"
"""Folder beside the models that is ours alone: partial files, and what is removed after the conversion."""
MARGIN = 2**29
"""Bytes to leave free on the disk."""


@dataclass(frozen=True)
class Published:
    """A published model: where its weights are, and whose configuration and tokenizer it uses."""

    repository: str
    base: str
    weights: str | None = None
    """The weight file; None for the only one the repository holds."""
    tokenizer: bool = True
    """Whether it reads text. The autoencoder alone does not."""


PUBLISHED: dict[str, Published] = {
    "VGT-InternVL3-1.6B-SFT": Published("hustvl/vgt_internvl3_1_6B_sft", "OpenGVLab/InternVL3-2B"),
    "VGT-InternVL3-1.6B-Pretrain": Published("hustvl/vgt_internvl3_1_6B_pretrain", "OpenGVLab/InternVL3-2B"),
    "VGT-Qwen2.5-VL-2B-SFT": Published("hustvl/vgt_qwen25vl_2B_sft", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "VGT-Qwen2.5-VL-2B-Pretrain": Published("hustvl/vgt_qwen25vl_2B_pretrain", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "VGT-AE-InternVL3": Published("hustvl/vgt_ae", "OpenGVLab/InternVL3-1B", "vgt_ae_internvl3.pth", False),
    "VGT-AE-Qwen2.5-VL": Published("hustvl/vgt_ae", "Qwen/Qwen2.5-VL-3B-Instruct", "vgt_ae_qwen25vl.pth", False),
}


REVISIONS: dict[str, str] = {
    DC_AE: "6f7b3f3b289a439a11ef4fb1034989fd4b9a4766",
    "OpenGVLab/InternVL3-1B": "4415a3b810e636d11dfa86b0e9ba40bb00535aa8",
    "OpenGVLab/InternVL3-2B": "899155015275a9b7338c7f4677e19c784e0e5a21",
    "Qwen/Qwen2.5-VL-3B-Instruct": "66285546d2b821cf421d4f5eb2576359d3770cd3",
}
"""Repository → the commit that is downloaded. Those that are not named here, as VGT's own, are downloaded as they are
at the time, all files of one from one commit. To pin one, add the hash under *Files and versions* of its page."""


def obtain(
    name: str,
    folder: str | Path,
    convert: Callable[[Path, Path], object],
    progress: Progress | None = None,
    check: Check | None = None,
) -> Path:
    """Return `folder/NAME.safetensors`, downloading and converting the published model if it is not there.

    name: one of `PUBLISHED`. folder: where models are kept; files put into `folder/NAME/` by hand are used first, and
    are never changed. convert(source_folder, out_path): writes the file. progress(done_bytes, total_bytes, what) and
    check() are called in this thread, several times a second until the download is complete; check may raise to cancel,
    which leaves partial files that the next call continues.
    Raises HubError (Offline, DiskFull, BadFile), and whatever check or convert raise.
    """
    model, check, folder = _published(name), check or _nothing, Path(folder)
    result, work, placed = folder / f"{name}.safetensors", folder / WORK / name, folder / name
    if result.is_file():
        return result
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    with locked(work.with_name(f"{name}.lock"), check):
        if result.is_file():  # made by another caller while this one waited
            return result
        source = next((place for place in (placed, work) if _complete(model, place)), None)
        if source:
            _need_space(name, folder, size_of(_complete(model, source)))
        else:
            source = _download(name, work, placed, progress, check)
        written = work / "converted" / result.name
        shutil.rmtree(written.parent, ignore_errors=True)  # what a crash left
        try:
            written.parent.mkdir()
            convert(source, written)
            os.replace(written, result)
        except Exception as error:
            if getattr(error, "errno", None) in NO_SPACE or "No space left" in str(error):  # safetensors: no errno
                raise DiskFull(f"The disk is full while writing {result}: make room and run again.") from error
            raise
        finally:
            shutil.rmtree(written.parent, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
    return result


def download(name: str, folder: str | Path, progress: Progress | None = None, check: Check | None = None) -> Path:
    """Bring the files of a published model into `folder` as they are: the weights, `base/` and `dc_ae/`.

    Reports, cancels and raises as `obtain` does. What is complete in `folder` or in the hub cache is not downloaded
    again; small files are downloaded into the hub cache. Returns `folder`.
    """
    model, check, folder = _published(name), check or _nothing, Path(folder)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{WORK}.lock", check):
        return folder if _complete(model, folder) else _download(name, folder, folder, progress, check)


def missing_files_message(name: str, place: str | Path) -> str:
    """A short list: which files of which repositories to put where below `place`, so that no network is needed."""
    model, place = _published(name), Path(place)
    tokenizer = ", tokenizer.json or vocab.json and merges.txt" if model.tokenizer else ""
    return "\n".join(
        (
            "Fetch these elsewhere, and run again:",
            f"- {model.repository}: {model.weights or 'the .pth file'} into {place}",
            f"- {model.base}: {CONFIG}{tokenizer} into {place / 'base'}",
            f"- {DC_AE}: {CONFIG} into {place / 'dc_ae'}",
        )
    )


def _nothing():
    pass


def _published(name: str) -> Published:
    if name not in PUBLISHED:
        raise HubError(f"{name!r} is not a published VGT model: choose one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def _weights(model: Published, names: list[str], where: str) -> str | None:
    """The weight file among names, None without one; raises where it is not clear which."""
    found = [n for n in sorted(names) if (n == model.weights if model.weights else n.endswith(WEIGHT_SUFFIXES))]
    if len(found) > 1:
        raise HubError(f"{where} holds several weight files ({', '.join(found)}): download the right one by hand.")
    return found[0] if found else None


def _complete(model: Published, folder: Path) -> Path | None:
    """The weights in folder, if the configurations are there too. (A missing text tokenizer has a stand-in.)"""
    weights = _weights(model, [path.name for path in folder.glob("*") if path.is_file()], str(folder))
    there = weights and (folder / "base" / CONFIG).is_file() and (folder / "dc_ae" / CONFIG).is_file()
    return folder / weights if there else None


def _download(name: str, target: Path, placed: Path, progress: Progress | None, check: Check) -> Path:
    """Bring everything into target, taking what is in the folder `placed` or in the hub cache from there."""
    model, transfer = _published(name), Transfer()

    def work():
        try:
            files = _needed(model, transfer.list_files)
        except Offline as offline:
            try:
                files = _needed(model, _list_cached)
            except HubError:
                raise Offline(f"{name}: {offline} {missing_files_message(name, placed)}") from offline
        present = {place: _present(file, place, target, placed) for place, file in files.items()}
        lacking = [(target / place, file) for place, file in files.items() if not present[place]]
        missing = sum(file.size - size_of(partial_path(file, path)) for path, file in lacking)
        _need_space(name, target, missing + max(file.size for file in files.values()))
        transfer.total = sum(file.size for file in files.values())
        done = 0
        for place, file in files.items():
            transfer.what = str(file)
            _bring(file, present[place], target / place, transfer)
            done += file.size
            transfer.done = done

    transfer.run(work, progress, check)
    return target


def _needed(model: Published, list_files: Callable[[str, str | None], dict[str, HubFile]]) -> dict[str, HubFile]:
    """The files of a model by their place in its folder, the weights last: when those are there, everything is."""

    def take(repository: str, file_name: str | None) -> HubFile:
        held = listings[repository]
        if file_name not in held:
            wanted = file_name or model.weights or "weight file (.pth)"
            raise HubError(f"{repository} holds no {wanted}, only {', '.join(sorted(held))}: see if it was moved.")
        return held[file_name]

    repositories = (model.repository, model.base, DC_AE)
    listings = {repository: list_files(repository, REVISIONS.get(repository)) for repository in repositories}
    tokenizer = [n for n in TOKENIZER_FILES if model.tokenizer and n in listings[model.base]]
    files = {f"base/{n}": take(model.base, n) for n in (CONFIG, *tokenizer)}
    files[f"dc_ae/{CONFIG}"] = take(DC_AE, CONFIG)
    weights = take(model.repository, _weights(model, list(listings[model.repository]), model.repository))
    return {**files, weights.name: weights}


def _list_cached(repository: str, revision: str | None) -> dict[str, HubFile]:
    """What the hub cache holds: of the pinned commit, else, there being no network, of another."""
    if not (files := cached_files(repository, revision)):
        files, revision = cached_files(repository), None
    return {n: HubFile(repository, n, size_of(path), revision=revision) for n, path in files.items()}


def _present(file: HubFile, place: str, target: Path, placed: Path) -> Path | None:
    """Where the file is already, complete: in target, put there by hand, or in the hub cache."""
    own = target / place
    if own.is_file() and size_of(own) != file.size:
        raise BadFile(f"{own} has {size_of(own)} bytes where the hub lists {file.size}: move it away and run again.")
    for path in (own, placed / place, cached_files(file.repository, file.revision).get(file.name)):
        if path and path.is_file() and size_of(path) == file.size:
            return path
    return None


def _bring(file: HubFile, present: Path | None, path: Path, transfer: Transfer):
    """Have the file at path: it is there, or is linked from where it is, or is downloaded."""
    with transfer.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if present == path:
        return
    if present is None and file.name.endswith(WEIGHT_SUFFIXES):
        transfer.fetch(file, path)
        return
    present = present or transfer.fetch_to_cache(file)
    with transfer.writing(path):
        _link(present.resolve(), path)


def _link(source: Path, path: Path):
    """Put source at path, without a second copy where the file system allows."""
    path.unlink(missing_ok=True)  # a link whose file is gone
    for link in (os.link, os.symlink):
        with contextlib.suppress(OSError):
            return link(source, path)
    copy = path.with_name(f"{path.name}.incomplete")
    shutil.copyfile(source, copy)
    put_in_place(copy, path)


def _need_space(name: str, folder: Path, size: int):
    free, need = shutil.disk_usage(folder).free, size + MARGIN
    if free < need:
        raise DiskFull(f"{name} needs {need / 1e9:.1f} GB on the disk of {folder}, where {free / 1e9:.1f} GB are free.")
