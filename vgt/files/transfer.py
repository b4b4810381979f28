"""Files from a Hugging Face hub: what a repository holds, and a download that can be interrupted and continued.

Endpoint, token, proxies, offline switch and cache are huggingface_hub's (0.34 and later; imported when first used).
Weights are streamed here all the same: since version 1 the client throws the partial file away when a
download ends early, and in no version does it stop between two chunks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from .durable import put_in_place

CHUNK = 2**16
"""Bytes read and written at a time; as much is lost when a connection breaks."""
POLL = 0.1
"""Seconds between two calls of `check`."""
BACKOFF = (0.5, 1.0, 2.0, 4.0)
"""Seconds to wait after the first, second, … failure in a row."""
STATUS_HINTS = {
    401: "set HF_TOKEN to a token that may read it",
    403: "accept its conditions there and set HF_TOKEN",
    404: "if it is private, set HF_TOKEN",
}
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

Progress = Callable[[int, int, str], object]
Check = Callable[[], object]


class HubError(RuntimeError):
    """A download that cannot go on. The message says what, of which file or repository, and what to do."""

    __module__ = "vgt"  # where it is imported from; the host shows this in its log and API


class Offline(HubError):
    """The hub cannot be reached, and the files are not here."""

    __module__ = "vgt"


class DiskFull(HubError):
    """There is no room for the download or the converted file."""

    __module__ = "vgt"


class BadFile(HubError):
    """A file is not what the hub lists, by size or by hash."""

    __module__ = "vgt"


class _Cancelled(Exception):
    """Ends the downloading thread after the caller has left."""


@dataclass(frozen=True)
class HubFile:
    """A file at the root of a repository: sizes in bytes, the hash where the hub states one (LFS files)."""

    repository: str
    name: str
    size: int
    sha256: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}/{self.name}"


class Transfer:
    """A download under way. A thread does the work; the caller's waits for it, reports, and may leave at any time."""

    def __init__(self):
        self.done, self.total, self.what = 0, 0, ""
        self._stopped = threading.Event()
        self._writing = threading.Lock()

    def run(self, work: Callable[[], object], progress: Progress | None, check: Check):
        """Do `work` in a thread and return what it returns or raise what it raises.

        Meanwhile calls check() and progress(done, total, what) in this thread every `POLL` seconds. If one of them
        raises, that passes through at once and nothing is written any more, even if the thread still hangs in a read.
        """
        future: Future = Future()

        def body():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=body, name="vgt-download", daemon=True).start()
        shown = None
        try:
            while True:
                finished = wait([future], timeout=POLL).done
                check()
                now = (self.done, self.total, self.what)
                if progress and self.total and now != shown:
                    progress(*now)
                    shown = now
                if finished:
                    return future.result()
        finally:
            with self._writing:
                self._stopped.set()

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Guard a write to path: none happens after the caller has left, and its errors are told from the network's."""
        with self._writing, disk_errors(path):
            if self._stopped.is_set():
                raise _Cancelled
            yield

    def list_files(self, repository: str, revision: str | None = None) -> dict[str, HubFile]:
        """Return the files at the root of a repository, as the hub lists them at a commit (None: the latest)."""
        from huggingface_hub import HfApi, constants

        def ask():
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            return HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=timeout)

        info = self._persist(ask, repository)
        files = {}
        for entry in info.siblings or []:
            size, sha256 = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, None)
            if "/" not in entry.rfilename and size is not None:
                files[entry.rfilename] = HubFile(repository, entry.rfilename, size, sha256, info.sha)
        return files

    def fetch_to_cache(self, file: HubFile) -> Path:
        """Download a small file into the hub cache and return its path there."""
        from huggingface_hub import hf_hub_download

        path = Path(
            self._persist(lambda: hf_hub_download(file.repository, file.name, revision=file.revision), str(file))
        )
        if size_of(path) != file.size:
            raise BadFile(f"{file} came with {size_of(path)} bytes where the hub lists {file.size}: try again later.")
        return path

    def fetch(self, file: HubFile, place: Path):
        """Download a large file to place, going on from what an earlier call left of it."""
        partial, before = partial_path(file, place), self.done
        while True:
            resumed = partial.exists()
            self._persist(lambda: self._stream(file, partial, before), str(file))
            if file.sha256 in (None, self._sha256(partial)):
                break
            with self.writing(partial):
                partial.unlink()
            if not resumed:
                raise BadFile(f"{file} came with another sha256 than the hub states: download it again.")
            # What was left of it was damaged: once more, from the start.
        with self.writing(place):
            put_in_place(partial, place)

    def _stream(self, file: HubFile, partial: Path, before: int):
        """Append to partial what it lacks of file."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        start = size_of(partial) if size_of(partial) <= file.size else 0
        self.done = before + start
        if start == file.size:
            return
        url, session = hf_hub_url(file.repository, file.name, revision=file.revision), get_session()
        resume = {"Range": f"bytes={start}-"} if start else {}
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", **resume}
        options = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
        if callable(session.stream):  # httpx: huggingface_hub 1 and later
            opened = session.stream("GET", url, follow_redirects=True, **options)
        else:  # requests: huggingface_hub 0.x
            opened = session.get(url, stream=True, **options)
        with contextlib.ExitStack() as stack:
            response = stack.enter_context(opened)
            hf_raise_for_status(response)
            if response.status_code != 206:  # the server does not resume
                start = 0
            stated = response.headers.get("Content-Range", "").rpartition("/")[2]
            stated = stated or response.headers.get("Content-Length", "")
            if stated.isdigit() and int(stated) != file.size:
                raise BadFile(f"{file} comes with {stated} bytes where the hub lists {file.size}: try again later.")
            self.done = before + start
            with self.writing(partial):
                out = stack.enter_context(open(partial, "ab", buffering=0))
                out.truncate(start)
            for chunk in (
                response.iter_bytes(CHUNK) if hasattr(response, "iter_bytes") else response.iter_content(CHUNK)
            ):
                with self.writing(partial):
                    if out.write(chunk) < len(chunk):
                        raise OSError(errno.ENOSPC, "short write")
                self.done += len(chunk)
        if size_of(partial) != file.size:
            raise ConnectionError("the connection ended early")

    def _persist(self, call: Callable[[], object], what: str):
        """Return call(), called again after a failure that may pass, until several in a row brought not a byte."""
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        clients = tuple(sys.modules[m].HTTPError for m in ("httpx", "httpx2") if m in sys.modules)  # requests: OSError
        failures, furthest = 0, self.done
        while True:
            try:
                return call()
            except OfflineModeIsEnabled as error:
                raise Offline("huggingface_hub is in offline mode (HF_HUB_OFFLINE).") from error
            except (OSError, HfHubHTTPError, *clients) as error:
                # LocalEntryNotFoundError is how the client says that it could not ask.
                answered = isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError)
                status = getattr(error.response, "status_code", 0) if answered else 0
                if not answered and isinstance(error, OSError) and (error.filename or error.errno in NO_SPACE):
                    raise disk_error(error, Path(error.filename or constants.HF_HUB_CACHE)) from error
                if self.done > furthest:
                    failures, furthest = 0, self.done
                failures += 1
                if failures > len(BACKOFF) or (400 <= status < 500 and status not in (408, 429)):
                    if status:
                        hint = STATUS_HINTS.get(status, "try again later")
                        raise HubError(f"{what}: {constants.ENDPOINT} answered {status}; {hint}.") from error
                    if not self.total:
                        raise Offline(f"{constants.ENDPOINT} cannot be reached.") from error
                    raise HubError(f"{what}: the connection keeps breaking; run again to continue.") from error
            if self._stopped.wait(BACKOFF[failures - 1]):
                raise _Cancelled

    def _sha256(self, path: Path) -> str:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**22):
                if self._stopped.is_set():
                    raise _Cancelled
                digest.update(block)
        return digest.hexdigest()


def partial_path(file: HubFile, place: Path) -> Path:
    """Return where the part of file that is here is kept until it is complete.

    The hash is in the name, so that a part is only ever continued with bytes of the same file.
    """
    return place.with_name(f"{place.name}.{(file.sha256 or file.revision or '')[:12]}.incomplete")


def cached_files(repository: str, revision: str | None = None) -> dict[str, Path]:
    """Return the files of a repository that the hub cache holds at a commit (None: the only one, or main's)."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        commits = [path.name for path in (folder / "snapshots").iterdir()]
        if revision is None:
            revision = commits[0] if len(commits) == 1 else (folder / "refs" / "main").read_text().strip()
        snapshot = folder / "snapshots" / revision
        return {path.name: path for path in snapshot.iterdir() if path.is_file()}
    except OSError:
        return {}


@contextlib.contextmanager
def locked(path: Path, check: Check) -> Iterator[None]:
    """Hold the file lock at path, waiting for whoever holds it, in this process or another; check() may raise."""
    from filelock import FileLock, Timeout

    lock = FileLock(str(path))
    while True:
        check()
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            time.sleep(POLL)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into one sentence about path."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def disk_error(error: OSError, path: Path) -> HubError:
    """Return the sentence for an OSError met while writing path."""
    if error.errno in NO_SPACE:
        return DiskFull(f"The disk is full while writing {path}: make room and run again to continue.")
    return HubError(f"{path} cannot be written ({error.strerror or error}): check the folder and its permissions.")


def size_of(path: Path) -> int:
    """Return a file's size in bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
