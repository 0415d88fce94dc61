"""The answer to a page that waits: one line of JSON per event, sent as it happens."""

import json
import select
import socket
from typing import Any, BinaryIO

from meloformer.demo.waiting_line import VisitorGoneError

CONTENT_TYPE = "application/x-ndjson; charset=utf-8"
# Known where the system tells it, also of who has sent more than was asked for before.
_HUNG_UP = getattr(select, "POLLRDHUP", 0)


class EventStream:
    """Sends events over an open connection, and knows whether somebody still listens.

    Args:
        out: where the answer goes.
        connection: whose other side may hang up.
        is_chunked: each event is a chunk, by which the end is known; otherwise the connection's
            end is the answer's.
    """

    def __init__(
        self, out: BinaryIO, connection: socket.socket, *, is_chunked: bool = True
    ) -> None:
        self._out, self._connection, self._is_chunked = out, connection, is_chunked

    def send(self, event: dict[str, Any]) -> None:
        """Send an event.

        Raises:
            VisitorGoneError: nobody is there any more, or takes too long to read.
        """
        line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        self._write(b"%x\r\n%s\r\n" % (len(line), line) if self._is_chunked else line)

    def end(self) -> None:
        """Say that nothing more will come."""
        if self._is_chunked:
            self._write(b"0\r\n\r\n")

    def is_gone(self) -> bool:
        """Whether the other side has hung up."""
        try:
            # Not `select`, which refuses a connection behind a thousand others.
            poll = select.poll()
            poll.register(self._connection, select.POLLIN | _HUNG_UP)
            if not (found := poll.poll(0)):
                return False
            if found[0][1] & _HUNG_UP:
                return True
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
