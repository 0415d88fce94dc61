"""Limits of time and memory for each input file, inside the process that reads it."""

import faulthandler
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np

from meloformer.errors import ConfigError

_REARM_SECONDS = 1.0
_MEGABYTE = 1 << 20
_PRODUCT_SIDE = 256  # of matrices too large for products that need no memory
_MOST_SECONDS = 86_400
_MOST_MEGABYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class FileLimits:
    """What one input file may take.

    Args:
        file_seconds: time to read and convert it; past it the file is rejected (`timeout`).
        file_megabytes: memory on top of what the worker has; past it the file is rejected
            (`too_much_memory`). Enforced on Linux.
    """

    file_seconds: float = 60.0
    file_megabytes: int = 2048

    def __post_init__(self) -> None:
        for name, most in (("file_seconds", _MOST_SECONDS), ("file_megabytes", _MOST_MEGABYTES)):
            if not 0 < getattr(self, name) <= most:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed above 0, up to {most}")


class TimeIsUp(BaseException):
    """Not an Exception: no reader may take it for one of its own."""


class Guard:
    """Holds files to their limits: by an alarm, and where native code is deaf to it, by death.

    Args:
        limits: the process ends about twice `file_seconds` after the alarm was not heard.
    """

    def __init__(self, limits: FileLimits) -> None:
        self.limits = limits
        self._armed_at = -math.inf

    def __enter__(self) -> "Guard":
        self._previous = signal.signal(signal.SIGALRM, self._on_alarm)
        self._null = open(os.devnull, "w")  # closed in __exit__
        self._memory = resource.getrlimit(resource.RLIMIT_DATA)
        _let_products_take_memory()
        if sys.platform == "linux":
            soft = _data_bytes() + self.limits.file_megabytes * _MEGABYTE
            hard = self._memory[1]
            if hard == resource.RLIM_INFINITY or soft <= hard:
                resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_DATA, self._memory)
        signal.signal(signal.SIGALRM, self._previous)
        self._null.close()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Raise TimeIsUp in the block when its time is up, MemoryError when its memory is."""
        # Arming costs a thread, so files that come quickly share one.
        seconds = self.limits.file_seconds
        now = time.monotonic()
        if now - self._armed_at > min(_REARM_SECONDS, seconds):
            faulthandler.dump_traceback_later(2 * seconds, exit=True, file=self._null)
            self._armed_at = now
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @staticmethod
    def _on_alarm(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp


@cache
def _let_products_take_memory() -> None:
    """Multiply matrices: OpenBLAS takes its memory then, once, and dies where there is none."""
    square = np.ones((_PRODUCT_SIDE, _PRODUCT_SIDE))
    square @ square


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    return pages * resource.getpagesize()
