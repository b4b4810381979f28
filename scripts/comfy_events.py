"""Listen to a running ComfyUI: a small WebSocket client (RFC 6455, the receiving side). Standard library only."""

import base64
import contextlib
import json
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
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
        self._socket = socket.create_connection((host, port), timeout=30)
        self._reader = self._socket.makefile("rb")
        self._handshake(f"{host}:{port}", client_id)
        # Previews come with the id of their node only to clients that say so in their first message.
        self._send(TEXT, json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}).encode())
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.wait_for("feature_flags", timeout=30)  # the host's answer: it has read ours

    def wait_for(self, type, matches=lambda data: True, timeout=60):
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
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._reader.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _handshake(self, host, client_id):
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        status = self._reader.readline().decode("latin-1").strip()
        while self._reader.readline().strip():
            pass
        if " 101 " not in f"{status} ":
            raise OSError(f"ComfyUI refused the WebSocket connection ({status}).")

    def _send(self, opcode, payload):
        """Send one frame; a client's frames are masked, and ours stay under 64 KiB."""
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else struct.pack(">BH", 0x80 | 126, len(payload))
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode]) + length + mask + masked)

    def _read(self):
        message, kind = b"", None
        try:
            while True:
                final, opcode, payload = self._frame()
                if opcode == CLOSE:
                    return
                if opcode == PING:
                    self._send(PONG, payload)
                if opcode >= CLOSE:
                    continue
                message, kind = message + payload, opcode or kind  # opcode 0 continues the frame before
                if final:
                    self._add(kind, message)
                    message = b""
        except (OSError, EOFError, ValueError):
            return  # closed, from this side or the other

    def _frame(self):
        first, second = self._exactly(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(self._exactly(2 if length == 126 else 8), "big")
        return bool(first & 0x80), first & 0x0F, self._exactly(length)

    def _exactly(self, count):
        data = self._reader.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _add(self, kind, message):
        event = _binary_event(message) if kind == BINARY else _text_event(message)
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
