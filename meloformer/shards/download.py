"""Bytes of a URL through fsspec, from servers that are slow, fail, hang up, or send wrong bytes."""

import asyncio
import errno
import hashlib
import logging
import random
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from meloformer.errors import ConfigError, ShardError

# Protocols that --data takes, and the package that fsspec needs for each.
PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
}

_SMALLEST_RANGE, _LARGEST_RANGE = 64 << 10, 8 << 20
# Answers to a range that a server gives which takes no ranges.
_NO_RANGES = (400, 405, 416, 501)
# Of the answers that blame the request, those that another try may change.
_WORTH_ANOTHER_TRY = (408, 425, 429)

# What s3fs makes of the answers 503 and 500.
_S3FS_REFUSALS = (errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY))
# What aiohttp and botocore say of a URL that can be none, and TLS of a server that is not the one.
_IMPOSSIBLE_URLS = ("InvalidURL", "InvalidUrlClientError", "ParamValidationError")
_NO_HANDSHAKE = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
# Failures in a row that are no longer the ordinary life of a network.
_WORTH_A_WARNING = 3

# A forked process that let go of its parent's file system would close connections, and so take
# them from the poll that both share: a request of the parent would wait in vain for its answer.
_kept_for_ever: dict[int, Any] = {}

_log = logging.getLogger(__name__)
# Not the module's own generator: retries would change what a run's seed decides, and processes
# forked together would come back together.
_jitter = random.SystemRandom()


class UnreachableError(ShardError):
    """No server has answered, however often it was asked."""


class _WrongContentError(Exception):
    """A server has answered, but not with what the file holds."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to give up on a server.

    Args:
        failures: failed requests in a row for one file; any byte that comes begins a new count.
        opening_failures: the same for the manifest, for which somebody may be waiting.
        silence_seconds: time since the last byte of a file after which no failure is forgiven.
        wrong_sums: times that a file may come complete and be other than stated.
        first_pause_seconds: longest pause after the first failure; each failure doubles it.
        longest_pause_seconds: pauses do not grow beyond it.
        request_seconds: time for a request; each one that takes longer doubles it for the next.
        longest_request_seconds: that time does not grow beyond it.
    """

    failures: int = 30
    opening_failures: int = 10
    silence_seconds: float = 900.0
    wrong_sums: int = 3
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 10.0
    request_seconds: float = 30.0
    longest_request_seconds: float = 240.0

    def pause(self, failures: int) -> None:
        """Wait after a number of failures in a row, a random time so that ranks spread out."""
        longest = min(self.first_pause_seconds * 2 ** (failures - 1), self.longest_pause_seconds)
        time.sleep(_jitter.uniform(0.5, 1.0) * longest)


class Download:
    """Reads files under a URL. May be pickled and forked.

    Args:
        url: of the folder; user, password and query count for every file in it.
        patience: when to give up.

    Raises:
        ConfigError: the package for the protocol is missing.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        self._url = url
        self._patience = patience
        self._request_seconds = patience.request_seconds
        self._range_bytes = _LARGEST_RANGE
        self._takes_ranges = True
        protocol = urlsplit(url).scheme
        try:
            self._filesystem()
        except ImportError as error:
            raise ConfigError(
                f"--data {without_credentials(url)}: {protocol}:// needs the package "
                f"{PACKAGES[protocol]} ({error}); install it with `pip install "
                f"{PACKAGES[protocol]}`, or give a folder"
            ) from error

    def url_of(self, file: str) -> str:
        """The URL of a file in the folder."""
        if not self._url.startswith("http"):  # elsewhere ? and # are part of a name
            return f"{self._url.rstrip('/')}/{file}"
        parts = urlsplit(self._url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{file}"))

    def read_bytes(self, file: str) -> bytes:
        """A whole file of unknown size and sum, such as the manifest.

        Nothing tells whether a byte of it is wrong, so it is read until two answers agree.

        Raises:
            FileNotFoundError: the server says that there is none.
            ShardError: the server refuses; `UnreachableError` if it cannot be asked, at once where
                there is no such server.
        """
        url = self.url_of(file)
        failures, data = 0, None
        while True:
            try:
                # From the start on, and not simply all: s3fs would first ask for the size.
                start = 0 if self._takes_ranges else None
                before, data = data, self._read(url, start, None)
                if data == before:
                    return data
                if before is not None:
                    raise _WrongContentError("found two answers that differ, expected the same")
            except FileNotFoundError:
                raise
            except Exception as error:  # what fsspec's packages raise has no other common base
                if self._refuses_ranges(error):
                    continue
                if _is_mistyped(error):
                    # Once a file has come, the same error is the ordinary life of a network.
                    raise UnreachableError(
                        f"{without_credentials(url)}: {_words(error)}; check the URL, and whether "
                        "this machine is on the network"
                    ) from error
                failures += 1
                is_last = failures >= self._patience.opening_failures
                self._after_failure(url, failures, error, is_last=is_last)

    def write(self, file: str, target: BinaryIO, *, num_bytes: int, sha256: str) -> None:
        """Write a file to `target` from its start, range by range, and compare its sum.

        A connection that breaks costs the range that was on its way and not the file.

        Raises:
            ShardError: the server has no such file, or another one; `UnreachableError` if it
                cannot be asked.
        """
        url = self.url_of(file)
        for attempt in range(1, self._patience.wrong_sums + 1):
            target.seek(0)
            digest = hashlib.sha256()
            for block in self._blocks(url, num_bytes):
                digest.update(block)
                target.write(block)
            found = digest.hexdigest()
            if found == sha256:
                return
            message = (
                f"{without_credentials(url)}: found sha256 {found[:16]}, expected {sha256[:16]}"
            )
            if attempt < self._patience.wrong_sums:
                _log.warning("%s; fetching it again", message)
                self._patience.pause(attempt)
        raise ShardError(
            f"{message}, {self._patience.wrong_sums} times; copy the file to the server again from "
            "where the shards were made"
        )

    def _blocks(self, url: str, num_bytes: int) -> Iterator[bytes]:
        """The bytes of a file in order, from ranges that shrink where they fail."""
        offset = failures = 0
        deadline = time.monotonic() + self._patience.silence_seconds
        while offset < num_bytes:
            end = min(offset + self._range_bytes, num_bytes) if self._takes_ranges else num_bytes
            try:
                block = self._block(url, offset, end, num_bytes)
            except FileNotFoundError as error:
                raise ShardError(
                    f"{without_credentials(url)}: found no such file, expected {num_bytes} bytes; "
                    "copy it to the server again from where the shards were made"
                ) from error
            except Exception as error:  # what fsspec's packages raise has no other common base
                if self._refuses_ranges(error):
                    continue
                failures += 1
                is_last = failures >= self._patience.failures or time.monotonic() > deadline
                self._after_failure(url, failures, error, is_last=is_last)
                if not _is_refusal(error):
                    self._range_bytes = max(self._range_bytes // 4, _SMALLEST_RANGE)
                continue
            failures = 0
            deadline = time.monotonic() + self._patience.silence_seconds
            offset += len(block)
            # Slowly: where connections break at some size, most ranges stay under it.
            self._range_bytes = min(self._range_bytes * 9 // 8, _LARGEST_RANGE)
            yield block

    def _block(self, url: str, offset: int, end: int, num_bytes: int) -> bytes:
        ranged = self._takes_ranges
        block = self._read(url, offset, end) if ranged else self._read(url, None, None)
        if not ranged or len(block) > end - offset:
            # A server that ignores ranges has sent the file from its start.
            if len(block) != num_bytes:
                raise _WrongContentError(f"found {len(block)} bytes, expected {num_bytes}")
            return block[offset:]
        if not block:
            raise _WrongContentError(f"found {offset} bytes, expected {num_bytes}")
        return block

    def _refuses_ranges(self, error: Exception) -> bool:
        """Whether whole files should be asked for from now on, which is noted."""
        refuses = self._takes_ranges and _status(error) in _NO_RANGES
        self._takes_ranges = self._takes_ranges and not refuses
        return refuses

    def _read(self, url: str, start: int | None, end: int | None) -> bytes:
        """One request, within its time."""
        from fsspec.asyn import sync

        filesystem, path = self._filesystem(url)
        if not filesystem.async_impl:  # it keeps its own limits
            return filesystem.cat_file(path, start=start, end=end)
        extra = {}
        if url.startswith("http"):
            # A range of a compressed answer would be a range of other bytes.
            stated = filesystem.kwargs.get("headers", {})
            extra["headers"] = {**stated, "Accept-Encoding": "identity"}
        return sync(
            filesystem.loop,
            filesystem._cat_file,
            path,
            start=start,
            end=end,
            timeout=self._request_seconds,
            **extra,
        )

    def _filesystem(self, url: str | None = None) -> Any:
        # Asked for each time: fsspec keeps one per process, and a forked one must not be used.
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url or self._url)
        _kept_for_ever[id(filesystem)] = filesystem
        return filesystem, path

    def _after_failure(self, url: str, failures: int, error: Exception, *, is_last: bool) -> None:
        """Wait, or give up.

        Raises:
            ShardError: another try cannot help; `UnreachableError` if it was the last one.
        """
        message = f"{without_credentials(url)}: {_words(error)}"
        if _is_final(error):
            raise ShardError(
                f"{message}; allowed: a URL that can be read with the credentials of this process "
                "(fsspec and its packages take them from their configuration and environment)"
            ) from error
        # What botocore calls a checksum that does not match has no base class of its own.
        is_wrong = isinstance(error, _WrongContentError) or "Checksum" in type(error).__name__
        if is_last and is_wrong:
            raise ShardError(
                f"{message}; copy the file to the server again from where the shards were made"
            ) from error
        if is_last:
            raise UnreachableError(
                f"{message}, after {failures} requests in a row; try again later"
            ) from error
        level = logging.INFO if failures < _WORTH_A_WARNING else logging.WARNING
        _log.log(level, "%s; asking again (failures in a row: %d)", message, failures)
        if isinstance(error, asyncio.TimeoutError):
            self._request_seconds = min(
                self._request_seconds * 2, self._patience.longest_request_seconds
            )
        self._patience.pause(failures)


def without_credentials(text: str) -> str:
    """A URL, or words with URLs in them, without user, password and query.

    >>> without_credentials("https://me:secret@host/shards?signature=12 cannot be read")
    'https://host/shards cannot be read'
    """
    text = re.sub(r"(\w://)[^/\s@]+@", r"\1", text)
    return re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def _words(error: Exception) -> str:
    said = without_credentials(" ".join(str(error).split()))
    name = type(error).__name__
    if isinstance(error, _WrongContentError):
        return said
    return f"{name}: {said}" if said else name


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of fsspec's packages stands for, if any."""
    places = (error, "status"), (error, "code"), (getattr(error, "response", None), "status_code")
    statuses = (getattr(place, name, None) for place, name in places)
    return next((status for status in statuses if isinstance(status, int)), None)


def _is_refusal(error: Exception) -> bool:
    """Whether a server answered that it would not, whatever the size of what it was asked for."""
    return _status(error) is not None or getattr(error, "errno", None) in _S3FS_REFUSALS


def _is_mistyped(error: Exception) -> bool:
    """Whether there is no such host, or none that speaks this protocol under this name."""
    if type(error) is ValueError or type(error).__name__ in _IMPOSSIBLE_URLS:
        return True
    return any(
        isinstance(link, socket.gaierror)
        or (isinstance(link, ssl.SSLError) and getattr(link, "reason", "") in _NO_HANDSHAKE)
        for link in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from; botocore keeps that in a place of its own."""
    while isinstance(error, BaseException):
        yield error
        kept = getattr(error, "kwargs", None)
        own = kept.get("error") if isinstance(kept, dict) else None
        error = own or error.__cause__ or error.__context__


def _is_final(error: Exception) -> bool:
    if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _WORTH_ANOTHER_TRY
