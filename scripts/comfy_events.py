"""Listen to a running ComfyUI over its WebSocket. Needs aiohttp, which ComfyUI installs."""

import asyncio
import contextlib
import json
import struct
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PREVIEW_IMAGE, PROGRESS_TEXT, PREVIEW_IMAGE_WITH_METADATA = 1, 3, 4


@dataclass
class Event:
    """One message of the host.

    `type` is ComfyUI's name ("executing", "progress_state", "execution_error", …), or "preview" or "progress_text" for
    the binary ones. `data` is its JSON; a preview's is {"image": bytes, "image_type": str, "node_id": str, …}.
    """

    type: str
    data: Any
    time: float = field(default_factory=time.monotonic)


class EventStream:
    """Collects what the host sends to one client id, from connecting until `close`, in the list `events`."""

    def __init__(self, host, port, client_id):
        """Connect, and return when the host will send to this client. Raises OSError if it does not accept."""
        self.events: list[Event] = []
        self._arrived = threading.Condition()
        self._connected = Future()
        listening = self._listen(f"http://{host}:{port}/ws?clientId={client_id}")
        self._thread = threading.Thread(target=asyncio.run, args=(listening,), daemon=True)
        self._thread.start()
        self._loop, self._socket = self._connected.result(30)
        self.wait_for("feature_flags", timeout=30)  # the host's answer: it has read ours

    def wait_for(self, type, matches=lambda data: True, timeout=300):
        """Return the first event, past ones included, of this type whose data `matches`. Raises TimeoutError."""
        deadline, seen = time.monotonic() + timeout, 0
        with self._arrived:
            while True:
                for event in self.events[seen:]:
                    if event.type == type and matches(event.data):
                        return event
                seen = len(self.events)
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    raise TimeoutError(f"no event '{type}' came from ComfyUI within {timeout} s.")
                self._arrived.wait(min(left, 1))

    def of(self, type):
        """The data of all events of this type so far."""
        return [event.data for event in list(self.events) if event.type == type]

    def close(self):
        """End the connection; the events stay."""
        with contextlib.suppress(RuntimeError):  # the host has closed it, and the loop has ended
            asyncio.run_coroutine_threadsafe(self._socket.close(), self._loop)
        self._thread.join(15)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    async def _listen(self, address):
        async with aiohttp.ClientSession() as session:
            try:
                socket = await session.ws_connect(address, max_msg_size=0)
            except (OSError, aiohttp.ClientError) as error:
                self._connected.set_exception(OSError(f"ComfyUI refused the WebSocket connection ({error})."))
                return
            # Previews come with the id of their node only to clients that say so in their first message.
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            self._connected.set_result((asyncio.get_running_loop(), socket))
            async for message in socket:
                if message.type == aiohttp.WSMsgType.ERROR:
                    return
                binary = message.type == aiohttp.WSMsgType.BINARY
                event = _binary_event(message.data) if binary else _text_event(message.data)
                with self._arrived:
                    self.events.append(event)
                    self._arrived.notify_all()


def _text_event(message):
    content = json.loads(message)
    return Event(content["type"], content.get("data"))


def _binary_event(message):
    kind, first = struct.unpack(">II", message[:8])
    if kind == PREVIEW_IMAGE:
        return Event("preview", {"image": message[8:], "image_type": {1: "image/jpeg", 2: "image/png"}.get(first)})
    if kind == PREVIEW_IMAGE_WITH_METADATA:
        return Event("preview", {**json.loads(message[8 : 8 + first]), "image": message[8 + first :]})
    if kind == PROGRESS_TEXT:
        return Event(
            "progress_text", {"node_id": message[8 : 8 + first].decode(), "text": message[8 + first :].decode()}
        )
    return Event(f"binary {kind}", message[4:])
