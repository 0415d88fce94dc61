"""Where shards lie: a folder of this machine, or a URL whose files pass through the disk cache."""

import hashlib
import logging
import os
import queue
import re
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from meloformer.errors import ConfigError, ShardError
from meloformer.shards.disk_cache import CacheConfig, DiskCache
from meloformer.shards.download import (
    PACKAGES,
    Download,
    Patience,
    UnreachableError,
    without_credentials,
)

_PROTOCOL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_PREFETCH_THREADS = 2
# Times that a file may be evicted between being fetched and being opened.
_MAX_EVICTIONS = 10

_log = logging.getLogger(__name__)


class StoredFile(NamedTuple):
    """A file of a shard folder as its manifest states it."""

    file: str
    num_bytes: int
    sha256: str


class Storage(Protocol):
    """Files under one folder or URL. May be pickled into data workers.

    Attributes:
        name: the folder or URL for messages and logs, without credentials.
    """

    name: str

    def read_bytes(self, file: str) -> bytes:
        """A small file as it is now, such as the manifest.

        Raises:
            ShardError: it is not there or cannot be read.
        """

    def fetch(self, file: str, *, num_bytes: int, sha256: str) -> Path:
        """A file of this machine that holds the bytes, complete; of a URL, verified too.

        Raises:
            ShardError: it is missing or other than stated; names file, found and expected.
        """

    def prefetch(self, files: Iterable[StoredFile]) -> None:
        """Begin to fetch files in the background; what goes wrong is left to `fetch` to say."""


class LocalFolder:
    """A folder of this machine; nothing is copied.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def read_bytes(self, file: str) -> bytes:
        """See `Storage`."""
        try:
            return (self.path / file).read_bytes()
        except FileNotFoundError as error:
            raise _no_shard_folder(self.name, file) from error
        except OSError as error:
            raise ShardError(
                f"{self.path / file} cannot be read ({error}); copy it again from where the shards "
                "were made, or make them again with `make shard-data`"
            ) from error

    def fetch(self, file: str, *, num_bytes: int, sha256: str) -> Path:
        """The file itself, after a look at its size."""
        path = self.path / file
        found = path.stat().st_size if path.is_file() else None
        if found != num_bytes:
            raise ShardError(
                f"{path}: found {'no such file' if found is None else f'{found} bytes'}, "
                f"expected {num_bytes} bytes; copy it again from where the shards were made, "
                "or make them again with `make shard-data`"
            )
        return path

    def prefetch(self, files: Iterable[StoredFile]) -> None:
        """Nothing: it is all there."""


class RemoteFolder:
    """A folder behind a URL; its files are kept in the disk cache under the sum of their content.

    Args:
        url: of the folder.
        cache: where files are kept.
        patience: when to give up.

    Raises:
        ConfigError: the package for the protocol is missing, or the cache folder cannot be written.
    """

    def __init__(self, url: str, cache: CacheConfig, patience: Patience) -> None:
        self.name = without_credentials(url).rstrip("/")
        self._download = Download(url, patience)
        self._cache = DiskCache(cache)
        self._prefetched: queue.SimpleQueue[StoredFile] | None = None
        self._prefetched_by = 0

    def read_bytes(self, file: str) -> bytes:
        """The file as the server has it; while no server answers, as it was when last read.

        A run that restarts then goes on with the shards that this host holds. Other content than
        that of the manifest cannot slip in: every file is verified against its sum there.

        Raises:
            ShardError: it is not there, or no server answers and it was never read here.
        """
        what = f"{self.name}/{file}"
        name = hashlib.sha256(what.encode()).hexdigest()
        try:
            data = self._download.read_bytes(file)
        except FileNotFoundError as error:
            said = without_credentials(" ".join(str(error).split()))
            raise ShardError(
                f"{self.name} is no shard folder: found no {file} there ({said}); check the URL, "
                "or copy a folder made by `make shard-data` there, as it is"
            ) from error
        except UnreachableError as error:
            if not (kept := self._cache.find(name)):
                raise
            _log.warning("%s; going on with the copy of %s in %s", error, file, self._cache.folder)
            return kept.read_bytes()
        self._cache.put(name, data, what=what)
        return data

    def fetch(self, file: str, *, num_bytes: int, sha256: str) -> Path:
        """See `Storage`; the file may be evicted before it is opened, see `open_file`."""
        path = self._fetch(StoredFile(file, num_bytes, sha256), wait=True)
        assert path is not None, "None is for those who do not wait"
        return path

    def prefetch(self, files: Iterable[StoredFile]) -> None:
        """See `Storage`."""
        if self._prefetched is None or self._prefetched_by != os.getpid():
            # Threads do not pass into a forked process, though what they serve does.
            self._prefetched, self._prefetched_by = queue.SimpleQueue(), os.getpid()
            for _ in range(_PREFETCH_THREADS):
                # Daemons: a process that ends does not wait for files that nobody will read.
                threading.Thread(
                    target=self._run_prefetch, args=[self._prefetched], daemon=True
                ).start()
        for stored in files:
            self._prefetched.put(stored)

    def _run_prefetch(self, wanted: "queue.SimpleQueue[StoredFile]") -> None:
        while True:
            stored = wanted.get()
            try:
                # Not waiting: another process that fetches the file does so for all of this host.
                self._fetch(stored, wait=False)
            except ShardError as error:
                _log.debug("prefetch: %s", error)

    def _fetch(self, stored: StoredFile, *, wait: bool) -> Path | None:
        return self._cache.add(
            stored.sha256,
            stored.num_bytes,
            partial(
                self._download.write, stored.file, num_bytes=stored.num_bytes, sha256=stored.sha256
            ),
            what=f"{self.name}/{stored.file}",
            wait=wait,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Neither threads nor what waits for them pass into another process.
        return self.__dict__ | {"_prefetched": None}


def open_storage(
    data: str | Path, cache: CacheConfig | None = None, patience: Patience | None = None
) -> Storage:
    """The files of a shard folder, wherever it is.

    Args:
        data: a folder, or a URL that fsspec can read; credentials and endpoints come from the
            configuration and environment of fsspec and its packages.
        cache: where files of a URL are kept.
        patience: when to give up on a URL.

    Raises:
        ConfigError: another protocol than those of `PACKAGES`, its package is missing, or the cache
            folder cannot be written.
    """
    protocol = _PROTOCOL.match(str(data))
    if protocol is None:
        return LocalFolder(Path(data))
    if protocol[1] not in PACKAGES:
        raise ConfigError(
            f"--data {without_credentials(str(data))}: found protocol {protocol[1]}, allowed a "
            f"folder or {', '.join(f'{known}://' for known in PACKAGES)}"
        )
    return RemoteFolder(str(data), cache or CacheConfig(), patience or Patience())


def open_file(storage: Storage, stored: StoredFile) -> BinaryIO:
    """Fetch and open a file; once open it stays readable, evicted or not.

    Raises:
        ShardError: see `Storage.fetch`; or others evict it each time before it is opened.
    """
    for _ in range(_MAX_EVICTIONS):
        path = storage.fetch(stored.file, num_bytes=stored.num_bytes, sha256=stored.sha256)
        try:
            return path.open("rb")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ShardError(
                f"{path} cannot be read ({error}); copy it again from where it was made, "
                "or make the shards again with `make shard-data`"
            ) from error
    raise ShardError(
        f"{storage.name}/{stored.file}: evicted {_MAX_EVICTIONS} times before it could be opened; "
        "the processes of this host need more than --cache_gigabytes holds: give more"
    )


def _no_shard_folder(name: str, file: str) -> ShardError:
    return ShardError(
        f"{name} is no shard folder: found no {file} in it; "
        "make one with `make shard-data MIDI=<folder> OUT=<folder>`"
    )
