"""TensorBoard's files of a run, which end no run when the disk is full."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

# Each opening makes a new file: not at every step of a full disk.
_SECONDS_BETWEEN_OPENINGS = 60.0


class Board:
    """Draws into a folder that TensorBoard reads; opened with the first figure.

    Args:
        folder: made where missing.
        start_step: what the folder holds of later steps is not shown any more.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = start_step + 1
        self._not_before = 0.0
        _hush_threads()

    @property
    def is_open(self) -> bool:
        """Whether the last figures have found a file."""
        return self._writer is not None

    def draw(self, draw: Callable[[SummaryWriter], None]) -> None:
        """Add figures; for a while after a refusal, leave them out.

        Raises:
            OSError: the disk refuses these figures, or has refused earlier ones since.
        """
        if self._writer is None and time.monotonic() < self._not_before:
            return
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step)
                self._purge_step = None
            draw(self._writer)
        except OSError:
            self.close()
            self._not_before = time.monotonic() + _SECONDS_BETWEEN_OPENINGS
            raise

    def rewind(self, step: int) -> None:
        """Show nothing of the steps after this one any more."""
        self.close()
        self._purge_step = step + 1

    def close(self) -> bool:
        """Write what is left; whether there was room for it."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except OSError:
            return False
        return True


def _hush_threads() -> None:
    """Let TensorBoard's own thread end without a traceback where a disk is full.

    The next figure raises the same error, which is said in words.
    """
    if getattr(threading.excepthook, "is_hushed", False):
        return
    tell = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        is_board = type(failure.thread).__module__.startswith("tensorboard.")
        if not (is_board and issubclass(failure.exc_type, OSError)):
            tell(failure)

    hook.is_hushed = True  # type: ignore[attr-defined]
    threading.excepthook = hook
