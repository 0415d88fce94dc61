"""A model hub on this machine that takes what is uploaded: enough of its interface for commits."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class LocalHub:
    """What a hub was told.

    Args:
        address: of the server.
        repositories: facts of each that was made.
        files: content of each file of the last commit.
        messages: of the commits.
    """

    address: str = ""
    repositories: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@contextmanager
def running_hub() -> Iterator[LocalHub]:
    """Held while the server runs."""
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(answer(hub, self.path, body))

        def do_GET(self) -> None:
            self._answer({"id": "owner/name", "siblings": []})

        def _answer(self, found: dict[str, Any]) -> None:
            text = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(hub: LocalHub, path: str, body: bytes) -> dict[str, Any]:
    if path.endswith("/repos/create"):
        hub.repositories.append(json.loads(body))
        return {"url": f"{hub.address}/owner/name"}
    if "/preupload/" in path:
        names = [file["path"] for file in json.loads(body)["files"]]
        kinds = {"uploadMode": "regular", "shouldIgnore": False}
        return {"files": [{"path": name, **kinds} for name in names]}
    if "/commit/" in path:
        lines = [json.loads(line) for line in body.splitlines()]
        hub.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
        hub.files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        return {"commitUrl": f"{hub.address}/owner/name/commit/abc", "commitOid": "abc"}
    return {}  # the check of a card's header, among others
