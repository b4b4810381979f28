"""A local Hugging Face hub for the tests: `HubServer(repositories)` serves them as huggingface_hub's client expects.

Weight files (.pth, .safetensors) are LFS files: `/resolve/` redirects to another host name, as the real hub does. The
attributes make it misbehave, and tell what it was asked for.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

FIXTURES = Path(__file__).resolve().parent / "fixtures"
REVISION = "1234567890abcdef1234567890abcdef12345678"
LFS_SUFFIXES = (".pth", ".safetensors")


def published_repositories():
    """The published repositories with the recorded tiny models in them, and files that nobody should want."""

    def files(folder):
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    intern, qwen = FIXTURES / "internvl3", FIXTURES / "qwen2_5_vl"
    other = {"README.md": b"# model", "model-00001-of-00002.safetensors": b"base weights" * 1000}
    own = {"README.md": b"# VGT", ".gitattributes": b"*.pth filter=lfs", "logs/run.txt": b"log"}
    return {
        "hustvl/vgt_internvl3_1_6B_sft": {**own, "iter_5000.pth": (intern / "iter_5000.pth").read_bytes()},
        "hustvl/vgt_internvl3_1_6B_pretrain": {**own, "last.pth": (intern / "iter_5000.pth").read_bytes()},
        "hustvl/vgt_qwen25vl_2B_sft": {**own, "iter_5000.pth": (qwen / "iter_5000.pth").read_bytes()},
        "hustvl/vgt_qwen25vl_2B_pretrain": {**own, "last.pth": (qwen / "iter_5000.pth").read_bytes()},
        "hustvl/vgt_ae": {
            "README.md": b"# VGT-AE",
            "vgt_ae_internvl3.pth": (intern / "vgt_ae_internvl3.pth").read_bytes(),
            "vgt_ae_qwen25vl.pth": (qwen / "vgt_ae_qwen25vl.pth").read_bytes(),
        },
        "OpenGVLab/InternVL3-1B": {**other, **files(intern / "base")},
        "OpenGVLab/InternVL3-2B": {**other, **files(intern / "base")},
        "Qwen/Qwen2.5-VL-3B-Instruct": {**other, **files(qwen / "base")},
        "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers": {**other, **files(intern / "dc_ae")},
    }


class HubServer:
    """The hub, on a free port of this machine, from `with HubServer(...) as hub` on."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.token = None
        """Demanded of every request but those to the storage host, which must never see it."""
        self.break_after = {}
        """File name → how many bytes to send before breaking the connection, one number a request."""
        self.statuses = {}
        """File or repository name → statuses to answer with instead, one a request."""
        self.corrupt = set()
        """Names of files whose bytes are sent wrong."""
        self.other_size = {}
        """File name → the size at which it is sent, whatever is listed."""
        self.resumes = True
        """Whether Range is understood."""
        self.delay = 0.0
        """Seconds to wait between two pieces of 16 KiB of an LFS file."""
        self.stalled = set()
        """Names of files that stop half way without closing the connection."""
        self.requests = []
        """(method, repository/file, Range header or None) in order; listings as ("LIST", repository, None)."""
        self.sent = Counter()
        """Bytes of content sent, by repository/file."""
        self.revisions = set()
        """(repository, revision) of each listing and file that was asked for."""
        self.closing = threading.Event()

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def downloaded(self):
        """The files asked for with GET, without repetition."""
        return sorted({name for method, name, _ in self.requests if method == "GET"})

    def ranges(self, name):
        """The Range headers of the GET requests for a file, in order."""
        return [sent for method, what, sent in self.requests if method == "GET" and what == name]

    def forget(self):
        """Start recording anew."""
        self.requests.clear()
        self.sent.clear()
        self.revisions.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):  # clients break connections too
            super().handle()

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        hub, url = self.server.hub, urlsplit(self.path)
        parts = unquote(url.path).strip("/").split("/")
        authorization = self.headers.get("Authorization")
        if parts[0] == "storage":
            if authorization:
                return self._error(400, "the storage host was sent a token")
            repository, name = "/".join(parts[1:3]), parts[3]
            return self._content(repository, name, hub.repositories[repository][name])
        if hub.token and authorization != f"Bearer {hub.token}":
            return self._error(401, "Invalid username or password.", "RepoNotFound")
        if parts[:2] == ["api", "models"]:
            return self._list("/".join(parts[2:4]), "blobs" in parse_qs(url.query), parts[5:] or ["main"])
        if "resolve" in parts:
            return self._resolve("/".join(parts[:2]), "/".join(parts[4:]), parts[3])
        return self._error(404, "Not found")

    def _commit(self, repository, revision):
        self.server.hub.revisions.add((repository, revision))
        return REVISION if revision == "main" else revision

    def _list(self, repository, sizes, revision):
        hub = self.server.hub
        hub.requests.append(("LIST", repository, None))
        if hub.statuses.get(repository):
            return self._error(hub.statuses[repository].pop(0), "told to")
        if repository not in hub.repositories:
            return self._error(404, "Repository not found", "RepoNotFound")
        siblings = []
        for name, content in hub.repositories[repository].items():
            entry = {"rfilename": name}
            if sizes:
                entry["size"] = len(content)
            if sizes and name.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 134}
            siblings.append(entry)
        commit = self._commit(repository, revision[0])
        body = {"id": repository, "modelId": repository, "sha": commit, "private": False, "siblings": siblings}
        return self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repository, name, revision):
        content = self.server.hub.repositories.get(repository, {}).get(name)
        if content is None:
            return self._error(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": self._commit(repository, revision)}
        if not name.endswith(LFS_SUFFIXES):
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._content(repository, name, content, headers)
        headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        headers["X-Linked-Size"] = str(len(content))
        headers["Location"] = f"http://localhost:{self.server.hub.port}/storage/{repository}/{name}"
        return self._send(302, b"", headers)

    def _content(self, repository, name, content, headers=None):
        hub, full = self.server.hub, f"{repository}/{name}"
        asked = self.headers.get("Range")
        hub.requests.append((self.command, full, asked))
        if self.command == "GET" and hub.statuses.get(name):
            return self._error(hub.statuses[name].pop(0), "told to")
        if name in hub.corrupt:
            content = bytes(len(content))
        content = content[: hub.other_size.get(name, len(content))]
        headers, total, status = {"Accept-Ranges": "bytes", **(headers or {})}, len(content), 200
        if asked and hub.resumes:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= total:
                return self._error(416, "out of range")
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if self.command == "HEAD":
            return self._send(status, content, headers)
        limits = hub.break_after.get(name)
        limit = limits.pop(0) if limits else len(content)
        self._head(status, len(content), headers)
        for start in range(0, min(limit, len(content)), 2**14):
            piece = content[start : min(start + 2**14, limit)]
            self.wfile.write(piece)
            hub.sent[full] += len(piece)
            if name.endswith(LFS_SUFFIXES) and hub.delay:
                time.sleep(hub.delay)
            if name in hub.stalled and start >= len(content) // 2:
                hub.closing.wait(60)
        if limit < len(content):
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(2)
        return None

    def _error(self, status, message, code=None):
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        return self._send(status, json.dumps({"error": message}).encode(), headers)

    def _head(self, status, length, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status, body, headers):
        self._head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)
