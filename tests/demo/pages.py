"""A running page for tests, and a visitor who speaks HTTP by hand."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meloformer.demo.actions import Studio
from meloformer.demo.composer import Composer
from meloformer.demo.reading import MidiReader
from meloformer.demo.server import PageServer
from meloformer.demo.settings import PageConfig, PageLimits
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.tokens.vocabulary import EOS, FILL, KIND_OF, VOCAB_SIZE, Kind, fingerprint
from tests.bridge.bases import random_base
from tests.layouts import tiny_config

# A random model fills bars with whatever plays; one instrument keeps them short.
SMALL = {"bars": 2, "instruments": ["40"], "seed": 5}
# One that takes a while.
LONGER = {"bars": 8, "instruments": [str(program) for program in range(30, 60)], "seed": 7}
LIMITS = PageLimits(max_bars=8, max_upload_megabytes=0.05, queue=1)


def write_random_model(folder: Path) -> Path:
    """A run folder with a model that was never trained."""
    model = random_base(width=32, ffn_width=32, open_summary_rate=0.3)
    save_model(folder / "model", model.config, model.state_dict(), {"tokenizer": fingerprint()})
    return folder


class Talkative(MuseFormer):
    """Random, but with several notes in most bars; the weights alone would end them at once."""

    def unembed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        less_V = torch.zeros(VOCAB_SIZE)
        less_V[[*np.flatnonzero(KIND_OF == Kind.BAR).tolist(), EOS, FILL]] = 6.0
        return super().unembed(x_BTD) - less_V


def talkative(
    fill_rate: float, *, max_seconds: float = 300.0, kind: type[Composer] = Composer
) -> Composer:
    """Writes with a model that was never trained, and reads bars behind a hole if it says so."""
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "width": 32, "ffn_width": 32, "max_seq_len": 512}
    model = Talkative(tiny_config(fill_rate=fill_rate, **sizes)).eval()
    return kind(model, None, max_bars=LIMITS.max_bars, max_seconds=max_seconds)


@contextmanager
def serving(
    composer: Composer, limits: PageLimits = LIMITS, host: str = "127.0.0.1"
) -> Iterator["Visitor"]:
    """A server in this process, as launch/demo.py starts it, and somebody who asks it."""
    reader = MidiReader(PageConfig().files)
    with PageServer(Studio(composer, reader, limits), host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Visitor(server)
        finally:
            server.shutdown()
            thread.join()
            reader.close()


class Answer:
    """What the server said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def refusal(self) -> dict[str, Any]:
        """The one line that an error is."""
        [event] = self.events
        assert event["event"] == "error" and "\n" not in event["line"], event
        return event


class Visitor:
    """Asks a server, in a connection a request."""

    def __init__(self, server: PageServer) -> None:
        self.server, self.studio = server, server.studio
        self.port = server.server_address[1]

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask("POST", path, data, {"Content-Type": "application/json", **headers})

    def raw(self, request: bytes) -> bytes:
        """Everything that comes back for some bytes."""
        received = []
        # A server that hangs up may do so before all is sent.
        with self.connect() as connection, suppress(ConnectionError):
            connection.sendall(request)
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received.append(part)
        return b"".join(received)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def begin(self, path: str, body: Any) -> tuple[socket.socket, Iterator[dict[str, Any]]]:
        """Ask, and read events one by one while the connection stands."""
        data = json.dumps(body).encode()
        connection = self.connect()
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        response = http.client.HTTPResponse(connection)
        response.begin()

        def events() -> Iterator[dict[str, Any]]:
            while line := response.readline():
                yield json.loads(line)

        return connection, events()

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            return Answer(connection.getresponse())
        finally:
            connection.close()


def wait_until(claim: Callable[[], bool]) -> None:
    """Until it comes true; on a busy machine much later than it should."""
    end = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
