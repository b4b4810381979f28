"""What a node says of a run that is no error: in the log, and as a line of text under the node."""

from __future__ import annotations

import logging
import sys

_BLANK = " "
"""The interface takes no empty text."""


def prompt_server():
    """The host's server; None outside of it."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


class Notes:
    """The remarks of one run of a node.

    node_id: of the node on the canvas; None, outside a run of the host, leaves only the log.
    """

    _with_text: set[str] = set()
    """Nodes under which a text was put; it stays there until another comes."""

    def __init__(self, node_id: str | None = None):
        self._node_id = node_id
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        """Say one thing."""
        logging.info(f"VGT: {line}")
        self._lines.append(line)
        self._show("\n".join(self._lines))

    def done(self) -> None:
        """All is said; what an earlier run has left under the node goes if this one said nothing."""
        if not self._lines and self._node_id in self._with_text:
            self._show(_BLANK)

    def _show(self, text: str) -> None:
        server = prompt_server()
        if self._node_id is None or not hasattr(server, "send_progress_text"):
            return
        server.send_progress_text(text, self._node_id)
        self._with_text.add(self._node_id)
        if text == _BLANK:
            self._with_text.discard(self._node_id)
