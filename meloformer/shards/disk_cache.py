"""Remote files on the local disk: one folder per host, held under a size limit.

Any number of processes and threads may use the folder at once, and any of them may be killed at any
moment. Its only state is the folder itself: a finished file carries the time of its last use as its
modification time, an unfinished one has its full size from the start, so that the sizes in the
folder are always what is taken, and is locked as long as its writer lives.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from meloformer.errors import ConfigError, ShardError

BYTES_PER_GIGABYTE = 10**9

_FINISHED, _PART = ".shard", ".part"
# What is not named so is not ours, and never deleted.
_OURS = re.compile(r"[0-9a-f]{64}\.(shard|part)")
_LOCK = ".lock"
_WAIT_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where files of remote shards are kept on this host, and how many.

    Args:
        cache_dir: folder for remote shards, on a disk of this host; meloformer/shards in the user's
            cache folder if not given.
        cache_gigabytes: 10^9 bytes that the folder may hold; what was not used for longest goes.
    """

    cache_dir: Path | None = None
    cache_gigabytes: float = 50.0

    def __post_init__(self) -> None:
        if not 0.0 < self.cache_gigabytes < float("inf"):
            raise ConfigError(f"--cache_gigabytes {self.cache_gigabytes}: allowed: more than 0")

    @property
    def folder(self) -> Path:
        """The folder, whether it was given or not."""
        if self.cache_dir is not None:
            return self.cache_dir.expanduser()
        # The standard wants a path that is not absolute to be ignored.
        stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
        home = stated if stated.is_absolute() else Path("~/.cache").expanduser()
        return home / "meloformer" / "shards"

    @property
    def max_bytes(self) -> int:
        """Bytes that the folder may hold."""
        return int(self.cache_gigabytes * BYTES_PER_GIGABYTE)


class DiskCache:
    """Files under names that state their content, so one that is there is never out of date.

    Args:
        config: folder and limit.

    Raises:
        ConfigError: the folder cannot be made or written.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.folder = config.folder
        self.max_bytes = config.max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._folder_lock():
                self._make_room(0)
        except OSError as error:
            raise ConfigError(
                f"--cache_dir {self.folder}: cannot be written ({error}); allowed: a folder, new "
                "or not, on a disk of this host"
            ) from error

    def find(self, name: str, num_bytes: int | None = None) -> Path | None:
        """The file, noted as used just now; None where it is not there.

        Args:
            name: 64 hexadecimal digits.
            num_bytes: size that it must have; a file of another size is deleted.
        """
        path = self.folder / (name + _FINISHED)
        try:
            if num_bytes is not None and path.stat().st_size != num_bytes:
                path.unlink()
                return None
            _note_use(path)
        except FileNotFoundError:
            return None
        return path

    def add(
        self,
        name: str,
        num_bytes: int,
        write: Callable[[BinaryIO], object],
        *,
        what: str,
        wait: bool = True,
    ) -> Path | None:
        """Have a file written unless it is there; of several who want it, one writes.

        The file may be evicted as soon as this returns; who has opened it keeps its bytes.

        Args:
            name: 64 hexadecimal digits.
            num_bytes: its size.
            write: writes the content, from the file's start, and raises where it is wrong.
            what: what messages call the file.
            wait: whether to wait while another writes it.

        Returns:
            Its path; None where another is writing it and this one does not wait.

        Raises:
            ShardError: it is larger than the whole folder may be, or the disk is full.
        """
        if num_bytes > self.max_bytes:
            raise ShardError(
                f"{what}: found {num_bytes:,} bytes, --cache_gigabytes allows {self.max_bytes:,} "
                f"in {self.folder}; give a larger --cache_gigabytes"
            )
        part, path = self.folder / (name + _PART), self.folder / (name + _FINISHED)
        try:
            while not self.find(name, num_bytes):
                with self._locked(part, wait=wait) as file:
                    if file is not None:
                        self._write(name, num_bytes, write, file)
                        return path
                if not wait:
                    return None
        except OSError as error:
            raise self._unwritable(what, error) from error
        return path

    def put(self, name: str, content: bytes, *, what: str) -> None:
        """Keep bytes under a name, in place of those that are there.

        Raises:
            ShardError: there is no room.
        """
        path, part = self.folder / (name + _FINISHED), self.folder / (name + _PART)
        try:
            # Another's write that this one waited for may have failed, or been of other bytes.
            while not (path.is_file() and path.read_bytes() == content):
                with self._locked(part, wait=True) as file:
                    if file is not None:
                        path.unlink(missing_ok=True)
                        self._write(name, len(content), lambda target: target.write(content), file)
                        return
        except OSError as error:
            raise self._unwritable(what, error) from error

    def _write(
        self, name: str, num_bytes: int, write: Callable[[BinaryIO], object], file: BinaryIO
    ) -> None:
        """Turn a locked part into the finished file."""
        part = self.folder / (name + _PART)
        try:
            # Another may have finished between the caller's look and the lock.
            if self.find(name, num_bytes):
                part.unlink()
                return
            self._reserve(file, num_bytes)
            write(file)
            os.fsync(file.fileno())
            _note_use(part)
            # Who sums up the folder meanwhile could miss a file that changes its name.
            with self._folder_lock():
                part.replace(self.folder / (name + _FINISHED))
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _reserve(self, file: BinaryIO, num_bytes: int) -> None:
        """Give a part its full size as soon as there is room for it.

        Waits while the parts of others take the room. Whoever holds room waits for nothing, so
        some are always on their way to finish.
        """
        file.truncate(0)  # what a killed process had reserved
        while True:
            with self._folder_lock():
                if self._make_room(num_bytes):
                    file.truncate(num_bytes)
                    return
            time.sleep(_WAIT_SECONDS)

    def _make_room(self, num_bytes: int) -> bool:
        """Delete what killed processes left, then what was not used for longest; under the lock."""
        writing, finished = 0, []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not _OURS.fullmatch(entry.name):
                    continue
                path = Path(entry.path)
                try:
                    facts = entry.stat()
                    if entry.name.endswith(_FINISHED):
                        finished.append((facts.st_mtime_ns, facts.st_size, path))
                    elif not _sweep(path):
                        writing += facts.st_size
                except FileNotFoundError:
                    continue
        if writing + num_bytes > self.max_bytes:
            return False
        taken = writing + sum(size for _, size, _ in finished)
        for _, size, path in sorted(finished):
            if taken + num_bytes <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            taken -= size
        return True

    @contextlib.contextmanager
    def _locked(self, part: Path, *, wait: bool) -> Iterator[BinaryIO | None]:
        """Open and lock a part; None where another has it, or has just finished or deleted it.

        A part is deleted or renamed by the holder of its lock only. So whoever gets the lock later
        sees that the name no longer means the file that was locked.
        """
        # Made and locked at once for those who look for parts that nobody locks (`_make_room`).
        with self._folder_lock():
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            file = os.fdopen(descriptor, "r+b", buffering=0)
            is_ours = _lock(file)
        with file:
            if not is_ours:
                if not wait:
                    yield None
                    return
                # Not under the folder's lock, which the other needs to finish.
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield file if _is_named(file, part) else None
            finally:
                # A data worker forked meanwhile shares the lock: closing would leave it locked.
                fcntl.flock(file, fcntl.LOCK_UN)

    @contextlib.contextmanager
    def _folder_lock(self) -> Iterator[None]:
        with (self.folder / _LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def _unwritable(self, what: str, error: OSError) -> ShardError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ShardError(
                f"{what}: no room on the disk of --cache_dir {self.folder} ({error.strerror}); "
                "give a smaller --cache_gigabytes, or a --cache_dir on a larger disk"
            )
        return ShardError(f"{what}: cannot be kept in --cache_dir {self.folder} ({error})")


def _lock(file: BinaryIO) -> bool:
    """Lock a file unless another has done so; whether it is locked now."""
    try:
        # flock and not lockf: threads of one process exclude each other as well.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _note_use(path: Path) -> None:
    """Of a folder that users share, the owner of a file alone may do so."""
    with contextlib.suppress(PermissionError):
        # The kernel's own "now" moves in ticks, too coarse for the order of two uses.
        os.utime(path, ns=(time.time_ns(),) * 2)


def _is_named(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sweep(part: Path) -> bool:
    """Delete a part whose writer no longer lives; whether it was so."""
    with part.open("rb") as file:
        if not _lock(file):
            return False
        try:
            if _is_named(file, part):
                part.unlink()
            return True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
