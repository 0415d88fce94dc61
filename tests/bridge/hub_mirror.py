"""A mirror of the hub on this machine that hands out the files of one repository."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


@contextmanager
def running_mirror(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Address of the mirror and the paths that it was asked for, held while it runs.

    Args:
        name: of the repository, owner/name.
        folder: its files.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            found = content_of(path, name, folder)
            body = found or b"{}"
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def content_of(path: str, name: str, folder: Path) -> bytes | None:
    """What the hub has under a path."""
    files = [one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()]
    if path.startswith(f"/api/models/{name}/tree/"):
        sums = {file: hashlib.sha1((folder / file).read_bytes()).hexdigest() for file in files}
        sizes = {file: (folder / file).stat().st_size for file in files}
        tree = [
            {"type": "file", "path": file, "size": sizes[file], "oid": sums[file]}
            for file in sorted(files)
        ]
        return json.dumps(tree).encode()
    if path.startswith(f"/api/models/{name}"):
        siblings = [{"rfilename": file} for file in sorted(files)]
        return json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
    file = path.removeprefix(f"/{name}/resolve/").partition("/")[2]
    return (folder / file).read_bytes() if file in files else None
