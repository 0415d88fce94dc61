"""How far something is that takes minutes: a bar on a terminal, else a line now and then.

Both go to stderr and to no file: what was done in the end is said elsewhere.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from meloformer.training.metrics import duration

# Where nobody watches a bar: how often a line is written.
_SECONDS_PER_LINE = 30.0
# Of the pace by which the end is foretold.
_SECONDS_OF_PACE = 120.0

# Told how many are done, and how many there are in all.
Tell = Callable[[int, int], None]


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
    said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
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
                f"{what}: {done:,} of {total:,} {unit}{eta}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    try:
        yield tell
    finally:
        if progress.live.is_started:
            progress.stop()
