"""The server of the page: the standard library's, a thread a visitor, nothing kept between them."""

import json
import logging
import socket
import socketserver
import threading
import time
from contextlib import ExitStack, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from io import BufferedIOBase
from typing import Any, cast

from meloformer.demo.actions import ACTIONS, Action, Studio
from meloformer.demo.border import (
    SECURITY_HEADERS,
    PageError,
    as_page_error,
    check_sender,
    content_length,
)
from meloformer.demo.events import CONTENT_TYPE, EventStream
from meloformer.demo.waiting_line import VisitorGoneError
from meloformer.errors import ConfigError, MeloFormerError

_LOG = logging.getLogger(__name__)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".svg": "image/svg+xml",
}
_JSON = _TYPES[".json"]
# A visitor who neither reads nor writes for so long has gone.
_SILENCE_SECONDS = 30.0
# What is read of a refused body, so that the refusal arrives before the connection breaks.
_DRAINED_BYTES, _DRAINED_SECONDS = 1 << 25, 2.0


def static_files() -> dict[str, tuple[str, bytes]]:
    """Type and content of every file of the page, by the path that a browser asks for.

    All are read at once, and no path of a request is ever looked up on the disk.
    """
    files = {}
    for file in resources.files("meloformer.demo").joinpath("static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            files[f"/{file.name}"] = (_TYPES[suffix], file.read_bytes())
    files["/"] = files["/index.html"]
    return files


class PageServer(ThreadingHTTPServer):
    """Serves the page and its requests.

    Args:
        studio: answers them.
        host: to listen on.
        port: 0 takes a free one.

    Raises:
        ConfigError: nobody can listen there.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, studio: Studio, host: str, port: int) -> None:
        self.studio, self.host = studio, host
        self.files = static_files()
        self._free = threading.BoundedSemaphore(studio.limits.connections)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), PageHandler)
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"--host {host} --port {port}: nobody can listen there ({error}); allowed: an "
                "address of this machine and a free port, such as --port 0"
            ) from error

    @property
    def url(self) -> str:
        """Where a browser of this machine finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Without the name server, which may take long to say who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, if there is room."""
        if not self._free.acquire(blocking=False):
            with suppress(OSError):
                request.sendall(
                    b"HTTP/1.1 503 Service Unavailable\r\n"
                    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
                )
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            # No thread could be started, and none will make room.
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve it, and make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What a connection dies of is written down and not shown."""
        _LOG.debug("a connection broke", exc_info=True)


class PageHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "MeloFormer", ""
    timeout = _SILENCE_SECONDS
    # Small events would otherwise wait for each other.
    disable_nagle_algorithm = True
    server: PageServer

    def do_GET(self) -> None:
        """A file of the page, or what the page must know."""
        # A body is not read: what is left of it would be taken for the next request.
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True
        try:
            check_sender(self.headers, self.server.host, changes=False)
            if self.path == "/api/facts":
                content = (_JSON, json.dumps(self.server.studio.facts()).encode())
            elif self.path in self.server.files:
                content = self.server.files[self.path]
            else:
                raise PageError("not_found", "found no such page; allowed: /", HTTPStatus.NOT_FOUND)
        except PageError as error:
            self._refuse(error)
        else:
            self._send(HTTPStatus.OK, *content)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Something that the page asks for."""
        studio = self.server.studio
        try:
            check_sender(self.headers, self.server.host, changes=True)
            action = ACTIONS.get(self.path)
            if action is None:
                raise PageError(
                    "not_found",
                    f"found no such request; allowed: {', '.join(ACTIONS)}",
                    HTTPStatus.NOT_FOUND,
                )
            length = content_length(self.headers, action.most_bytes(studio.limits))
            body = self.rfile.read(length)
            if len(body) < length:
                raise VisitorGoneError
            self._act(action, body)
        except MeloFormerError as error:
            self._refuse(as_page_error(error))
        except (VisitorGoneError, TimeoutError, ConnectionError):
            self.close_connection = True
        except Exception:
            self._refuse(_fault())

    def _act(self, action: Action, body: bytes) -> None:
        """Prepare, wait for one's turn, work; refusals before the waiting are the answer."""
        studio = self.server.studio
        work = action.prepare(studio, body)
        with ExitStack() as stack:
            place = stack.enter_context(studio.line.join()) if action.writes else None
            # Who speaks the older HTTP, as many a proxy does, takes chunks for the answer's text.
            is_chunked = self.request_version != "HTTP/1.0"
            stream = EventStream(cast(Any, self.wfile), self.connection, is_chunked=is_chunked)
            self._begin(HTTPStatus.OK, CONTENT_TYPE)
            if is_chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Connection", "close")
            self.end_headers()
            try:
                if place is not None:
                    place.wait(
                        lambda before: stream.send({"event": "waiting", "before": before}),
                        stream.is_gone,
                    )
                work(stream)
            except VisitorGoneError:
                raise
            except MeloFormerError as error:
                stream.send(as_page_error(error).record())
            except Exception:
                stream.send(_fault().record())
            stream.end()

    def _refuse(self, error: PageError) -> None:
        """Say no, and end the connection: what was sent with the request may be unread."""
        self.close_connection = True
        with suppress(OSError):
            self._send(error.status, _JSON, json.dumps(error.record()).encode())
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            self._drain()

    def _drain(self) -> None:
        end, left = time.monotonic() + _DRAINED_SECONDS, _DRAINED_BYTES
        self.connection.settimeout(_DRAINED_SECONDS)
        while left > 0 and time.monotonic() < end:
            got = cast(BufferedIOBase, self.rfile).read1(1 << 16)
            if not got:
                return
            left -= len(got)

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self._begin(status, content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self, status: HTTPStatus, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in SECURITY_HEADERS.items():
            self.send_header(name, value)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself: the same shape, and nothing of the request in it."""
        status = HTTPStatus(code)
        self.command = getattr(self, "command", None) or "GET"
        # A line that is no request counts as one of the first HTTP, whose answers have no head.
        self.request_version = "HTTP/1.1"
        self._refuse(PageError("bad_request", f"the request: {status.phrase.lower()}", status))

    def log_message(self, format: str, *args: Any) -> None:
        """No word of who asked for what."""


def _fault() -> PageError:
    """What a visitor hears of a fault of ours, or of a device out of memory: a line.

    The terminal has it in full, and the next visitor is served.
    """
    _LOG.exception("a request failed")
    return PageError(
        "fault",
        "the server has failed at this; its terminal says why",
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
