"""How far something is that takes minutes: a bar on a terminal, else a line now and then.

Both go to stderr and to no file: what was done in the end is said elsewhere.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Where nobody watches a bar: how often a line is written.
_SECONDS_PER_LINE = 30.0
# Of the pace by which the end is foretold.
_SECONDS_OF_PACE = 120.0


class Tell(Protocol):
    """What is told how far a count is."""

    def __call__(self, done: int, total: int, part: str = "") -> None:
        """So many are done of so many in all; of the part that is named, where there are parts."""


@contextmanager
def shown(what: str, unit: str) -> Iterator[Tell]:
    """Show how far a count is, and when it ends; nothing where nothing is counted.

    Args:
        what: is done.
        unit: that is counted.

    Yields:
        What to call with the number done and the number in all.
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=_SECONDS_OF_PACE,
    )
    task = progress.add_task(what, total=None)
    said, counted = time.monotonic(), what

    def tell(done: int, total: int, part: str = "") -> None:
        nonlocal said, counted
        name = f"{what}, {part}" if part else what
        if name != counted:
            counted = name
            progress.reset(task, description=name)
        progress.update(task, completed=done, total=total)
        if console.is_terminal:
            progress.start()
            return
        now = time.monotonic()
        if done < total and now - said >= _SECONDS_PER_LINE:
            said = now
            seconds = progress.tasks[0].time_remaining
            eta = "" if seconds is None else f", eta {duration(seconds)}"
            console.print(
                f"{name}: {done:,} of {total:,} {unit}{eta}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    try:
        yield tell
    finally:
        if progress.live.is_started:
            progress.stop()


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(59), duration(3661)
    ('0:00:59', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
