"""The answer to a page that waits: one line of JSON per event, sent as it happens."""

import json
import select
import socket
from typing import Any, BinaryIO

from meloformer.demo.waiting_line import VisitorGoneError

CONTENT_TYPE = "application/x-ndjson; charset=utf-8"


class EventStream:
    """Sends events over an open connection, and knows whether somebody still listens.

    Args:
        out: where the chunks of the answer go.
        connection: whose other side may hang up.
    """

    def __init__(self, out: BinaryIO, connection: socket.socket) -> None:
        self._out, self._connection = out, connection

    def send(self, event: dict[str, Any]) -> None:
        """Send an event.

        Raises:
            VisitorGoneError: nobody is there any more, or takes too long to read.
        """
        line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._write(b"%x\r\n%s\r\n" % (len(line), line))

    def end(self) -> None:
        """Say that nothing more will come."""
        self._write(b"0\r\n\r\n")

    def is_gone(self) -> bool:
        """Whether the other side has hung up."""
        try:
            readable, _, _ = select.select([self._connection], [], [], 0)
            if not readable:
                return False
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            return True

    def _write(self, data: bytes) -> None:
        try:
            self._out.write(data)
            self._out.flush()
        except (OSError, ValueError) as error:
            raise VisitorGoneError from error
