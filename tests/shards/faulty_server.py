"""A real HTTP server on the loopback that can be as bad as servers get.

It serves a folder itself, or stands before another server and spoils its answers.
"""

import contextlib
import gzip
import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from tests.training.launching import keep_port

_CHUNK_BYTES = 16 << 10
_OWN_HEADERS = ("content-length", "connection", "date", "server", "transfer-encoding")


@dataclass
class Faults:
    """What a server does wrong; may be changed while it serves.

    Args:
        fails_every: each of so many requests gets status `fails_with`; 0 none.
        fails_with: an HTTP status.
        cut_bytes: connections break after so many bytes of an answer; 0 never.
        bytes_per_second: how fast it sends; 0 as fast as it can.
        wrong_bytes: answers that still get one byte changed.
        ranges: whether it answers ranges, sends the whole file instead, or refuses them.
        missing_bytes: what it leaves out at the end of every file.
        hangs: requests that still get no answer at all.
        compresses: whether it compresses for those who do not forbid it.
    """

    fails_every: int = 0
    fails_with: int = 503
    cut_bytes: int = 0
    bytes_per_second: int = 0
    wrong_bytes: int = 0
    ranges: Literal["answered", "ignored", "refused"] = "answered"
    missing_bytes: int = 0
    hangs: int = 0
    compresses: bool = False


@dataclass
class FaultyServer:
    """Serves a folder until the `with` block ends.

    Args:
        source: folder that lies under the URL, or URL of the server that knows the answers.
        faults: what goes wrong.
        requests: path and range of each request.
        sent_bytes: of files, in all.
    """

    source: Path | str
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent_bytes: int = 0

    def __enter__(self) -> "FaultyServer":
        class Handler(_Handler):
            owner = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that gives up, or is killed, is part of the play

        self._lock, self.is_closed = threading.Lock(), False
        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_closed = True
        self._server.shutdown()
        self._server.server_close()
        keep_port(self._server.server_port)  # a test may ask once more, and nobody is to answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def requests_of(self, file: str) -> list[str]:
        """The ranges of the requests for a file."""
        return [wanted for path, wanted in self.requests if path == file]

    def note(self, path: str, wanted: str) -> int:
        """Number of a request, from 1."""
        with self._lock:
            self.requests.append((path, wanted))
            return len(self.requests)

    def take(self, what: Literal["wrong_bytes", "hangs"]) -> bool:
        """Whether one more of these faults is due."""
        with self._lock:
            due = getattr(self.faults, what)
            setattr(self.faults, what, max(due - 1, 0))
            return due > 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultyServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        owner, faults = self.owner, self.owner.faults
        if owner.is_closed:  # connections outlive the listener
            self.close_connection = True
            return None
        file = self.path.partition("?")[0].lstrip("/")
        wanted = self.headers.get("Range", "")
        number = owner.note(file, wanted)
        if faults.hangs and owner.take("hangs"):
            time.sleep(3600)
        if faults.fails_every and number % faults.fails_every == 0:
            return self._refuse(faults.fails_with)
        status, headers, data = self._answer(owner.source, file, wanted)
        if status >= 300:
            return self._refuse(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command == "HEAD":
            self.end_headers()
            return None
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if faults.wrong_bytes and owner.take("wrong_bytes"):
            place = number * 7919 % len(data)
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        return self._send(data)

    do_HEAD = do_GET

    def _answer(
        self, source: Path | str, file: str, wanted: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and bytes as a good server would send them, but for what it cannot do."""
        if isinstance(source, str):
            return self._ask(source)
        if not (source / file).is_file():
            return 404, {}, b""
        data = (source / file).read_bytes()
        faults, headers = self.owner.faults, {}
        data = data[: len(data) - faults.missing_bytes]
        if faults.compresses and "gzip" in self.headers.get("Accept-Encoding", "gzip"):
            data, headers = gzip.compress(data), {"Content-Encoding": "gzip"}
        if not wanted or faults.ranges == "ignored":
            return 200, headers, data
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(data)) + 1, len(data))
        if start >= len(data) or faults.ranges == "refused":
            return 416, {}, b""
        place = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        return 206, headers | place, data[start:end]

    def _ask(self, server: str) -> tuple[int, dict[str, str], bytes]:
        """Answer of the server behind this one."""
        connection = http.client.HTTPConnection(server.removeprefix("http://"))
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        left_out = _OWN_HEADERS[self.command == "HEAD" :]
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in left_out}
        return answer.status, kept, data

    def _send(self, data: bytes) -> None:
        faults = self.owner.faults
        limit = faults.cut_bytes or len(data)
        for begin in range(0, min(limit, len(data)), _CHUNK_BYTES):
            chunk = data[begin : min(begin + _CHUNK_BYTES, limit)]
            self.wfile.write(chunk)
            self.owner.sent_bytes += len(chunk)
            if faults.bytes_per_second:
                time.sleep(len(chunk) / faults.bytes_per_second)
        if limit < len(data):
            self.close_connection = True
            self.wfile.flush()
            with contextlib.suppress(OSError):
                # A reset and not an orderly end, as from a machine between that has failed.
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.shutdown(socket.SHUT_RDWR)

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
