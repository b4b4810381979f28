"""Start a real ComfyUI with this pack in it, and talk to it over HTTP. Standard library only, but for `events`."""

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
FOLDERS = ("custom_nodes", "input", "models/vgt", "output", "temp", "user")


class HostError(RuntimeError):
    """The host did not start, or a prompt failed in it.

    After a node's error `node_id`, `node_type`, `exception_type` and `traceback` say where and what; the message is the
    node's own. They are None otherwise.
    """

    def __init__(self, message, node_id=None, node_type=None, exception_type=None, traceback=None):
        super().__init__(message)
        self.node_id, self.node_type = node_id, node_type
        self.exception_type, self.traceback = exception_type, traceback


class PromptRejected(HostError):
    """The host did not accept a prompt: `error` and `node_errors` are what it answered."""

    def __init__(self, answer):
        self.error, self.node_errors = answer.get("error", {}), answer.get("node_errors", {})
        lines = [self.error.get("message", str(answer))] if isinstance(self.error, dict) else [str(self.error)]
        for node_id, node in dict(self.node_errors).items():
            lines += [
                f"node {node_id} ({node['class_type']}): {error['message']}: {error['details']}"
                for error in node["errors"]
            ]
        super().__init__("; ".join(lines))


class Interrupted(HostError):
    """The prompt was ended by an interrupt."""


class Host:
    """A ComfyUI process of our own: its base directory holds nothing but this pack; `address` is where it answers."""

    def __init__(self, comfyui, base, python, args=(), port=None, log=None, env=None):
        """Prepare a host; nothing runs before `start`.

        Takes the ComfyUI folder, the base directory to use or make, the python that has ComfyUI's requirements,
        further arguments for ComfyUI, the port (default: a free one), a log file (default: this process's own output)
        and environment variables to add.
        """
        self.comfyui, self.base, self.python = Path(comfyui), Path(base).resolve(), str(python)
        self.args, self.env = list(args), dict(env or {})
        self.port = port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.client_id = uuid.uuid4().hex
        self.process = None
        self._log = Path(log) if log else None
        # No proxy from the environment stands between this process and its own machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def start(self, timeout=300):
        """Start the process and return self when it answers. Raises HostError, with the log's tail, if it does not."""
        make_base(self.base)
        command = [
            *(self.python, str(self.comfyui / "main.py")),
            *("--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(self.base)),
            *("--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"),
            *("--disable-api-nodes", "--disable-auto-launch"),
            *([] if has_accelerator(self.python) else ["--cpu"]),
            *self.args,
        ]
        group = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}  # 0x200: new process group
        output = open(self._log, "wb") if self._log else None  # noqa: SIM115 - the process keeps it open
        try:
            self.process = subprocess.Popen(
                command,
                cwd=self.comfyui,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                **group,
            )
        finally:
            if output:
                output.close()
        atexit.register(self.stop)
        try:
            self._wait_until_ready(timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_ready(self, timeout):
        deadline = time.monotonic() + timeout
        while True:
            if self.process.poll() is not None:
                raise HostError(
                    f"ComfyUI ended with exit code {self.process.returncode} before it answered.{self._tail()}"
                )
            try:
                self.get("/system_stats", timeout=5)
                return
            except (OSError, ValueError):
                if time.monotonic() > deadline:
                    raise HostError(f"ComfyUI did not answer within {timeout} s.{self._tail()}") from None
            time.sleep(0.2)

    def stop(self):
        """End the process and all it started; harmless when it does not run."""
        atexit.unregister(self.stop)
        process, self.process = self.process, None
        if process is None:
            return
        if os.name == "nt":
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
            process.wait(30)
            return
        for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 30)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, *_):
        self.stop()

    def log(self):
        """What the host has written so far (an empty string when it writes to this process's output)."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log and self._log.exists() else ""

    def _tail(self):
        lines = self.log().splitlines()[-30:]
        return "\n  " + "\n  ".join(lines) if lines else ""

    # The HTTP API

    def get(self, path, timeout=60):
        """The JSON that GET `path` answers. Raises OSError (urllib.error.HTTPError for a status of 400 and above)."""
        return json.loads(self._request(path, timeout=timeout))

    def post(self, path, data, timeout=60):
        """Send `data` as JSON; return the JSON of the answer, or None for an empty one. Raises OSError."""
        answer = self._request(path, json.dumps(data).encode(), "application/json", timeout)
        return json.loads(answer) if answer else None

    def _request(self, path, body=None, content_type=None, timeout=60):
        request = urllib.request.Request(
            self.address + path, body, {"Content-Type": content_type} if content_type else {}
        )
        with self._opener.open(request, timeout=timeout) as response:
            return response.read()

    def object_info(self, node=None):
        """All node schemas by type, or the schema of one node type."""
        return self.get(f"/object_info/{node}")[node] if node else self.get("/object_info")

    def queue(self, graph, **extra_data):
        """Queue an API-format graph and return its prompt id. Raises PromptRejected if the host finds it invalid."""
        try:
            prompt = {"prompt": graph, "client_id": self.client_id, "extra_data": extra_data}
            return self.post("/prompt", prompt)["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = error.read().decode(errors="replace")
            if error.code != 400:
                raise HostError(f"ComfyUI answered {error.code} to a prompt: {answer}{self._tail()}") from None
            raise PromptRejected(json.loads(answer)) from None

    def history(self, prompt_id):
        """The host's record of a prompt, or None while it is not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id, timeout=600, while_waiting=lambda: None):
        """Wait for a prompt, calling `while_waiting` often, and return its outputs, {node id: {"images": […], …}}.

        Raises HostError with a node's error message, Interrupted, or HostError when the host died or time ran out.
        """
        deadline = time.monotonic() + timeout
        while True:
            if self.process is None or self.process.poll() is not None:
                raise HostError(f"ComfyUI ended while prompt {prompt_id} was in it.{self._tail()}")
            try:
                record = self.history(prompt_id)
            except OSError:
                # A process that is ending refuses connections before it is gone: the next round tells.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
                    continue
                raise
            if record:
                return _outputs(record)
            while_waiting()
            if time.monotonic() > deadline:
                raise HostError(f"prompt {prompt_id} was not finished within {timeout} s.{self._tail()}")
            time.sleep(0.05)

    def run(self, graph, timeout=600):
        """Queue a graph and wait for it: `queue` and `wait` in one."""
        return self.wait(self.queue(graph), timeout)

    def interrupt(self):
        """Interrupt the prompt that is running."""
        self._request("/interrupt", b"{}", "application/json")

    def free(self):
        """Have the host unload all models and drop its cache.

        It does so between two prompts, so one that does nothing is run: whatever is queued later finds nothing loaded.
        """
        self._request("/free", b'{"unload_models": true, "free_memory": true}', "application/json")
        empty = {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}}
        self.run({"1": empty, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})

    def upload_image(self, path):
        """Put an image file into the host's input folder; returns the name that Load Image takes."""
        path, boundary = Path(path), uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        answer = json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def view(self, filename, subfolder="", type="output"):
        """The bytes of a file that the host has put out."""
        return self._request(
            "/view?" + urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type})
        )

    def events(self):
        """An EventStream (a context manager) of what the host sends while prompts of this object run."""
        from comfy_events import EventStream  # needs aiohttp, as nothing else here does

        return EventStream("127.0.0.1", self.port, self.client_id)


def _outputs(record):
    """The outputs in a history record; raises what went wrong instead."""
    messages = dict(record["status"]["messages"])
    if "execution_interrupted" in messages:
        raise Interrupted("the prompt was interrupted.", messages["execution_interrupted"].get("node_id"))
    if record["status"]["status_str"] != "success":
        error = messages.get("execution_error", {})
        trace = "".join(error.get("traceback") or [])
        where = error.get("node_id"), error.get("node_type"), error.get("exception_type"), trace
        raise HostError((error.get("exception_message") or str(record["status"])).strip(), *where)
    return record["outputs"]


def make_base(base):
    """Make a ComfyUI base directory whose one custom node is this pack, linked, not copied."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "ComfyUI-VGT"
    if link.exists() and os.path.samefile(link, PACK):
        return
    if os.path.lexists(link):  # left by a checkout that has been moved
        link.unlink()
    try:
        link.symlink_to(PACK, target_is_directory=True)
    except OSError:
        if os.name != "nt":
            raise
        # Windows asks for a right to make symbolic links, but for none to make a junction.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(PACK)], check=True, capture_output=True)


@functools.cache
def has_accelerator(python):
    """Whether the torch of this python finds a device other than the CPU; asked in a process of its own."""
    devices = "torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()"
    question = f"import sys, torch; sys.exit(0 if {devices} else 1)"
    return subprocess.run([str(python), "-c", question], capture_output=True).returncode == 0


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
