"""What a run does at the moment, for those who watch it from outside.

Steps leave lines; compiling, validations and saves leave none for minutes. So the first rank keeps
a small file beside them: what it is at, and since when. The file goes with the run, and stands
still with it where the run is killed.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

DOING_NAME = "doing.json"
SECONDS_BETWEEN_BEATS = 5.0
# A file that is older tells of a process that is gone: network disks show what is new late.
_MOST_SECONDS_BETWEEN_BEATS = 90.0
# What a thread may take to end, of a process that ends.
_MOST_SECONDS_TO_END = 10.0


@dataclass(frozen=True, kw_only=True)
class Doing:
    """What doing.json says.

    Args:
        moment: what is done, in words.
        seconds: for how long by then.
    """

    moment: str
    seconds: float


class DoingWriter:
    """Writes down every few seconds what a run does, in a thread of its own.

    Args:
        folder: the run folder.
        moment: says it in words.
    """

    def __init__(self, folder: Path, moment: Callable[[], str]) -> None:
        self._path, self._moment = folder / DOING_NAME, moment
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and take the file away: nothing is done any more."""
        self._is_over.set()
        # It ends at once, unless it is writing to a disk that does not answer.
        self._thread.join(_MOST_SECONDS_TO_END)
        with suppress(OSError):
            self._path.with_suffix(".tmp").unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        before, began = "", time.monotonic()
        while True:
            moment, now = self._moment(), time.monotonic()
            if moment != before:
                before, began = moment, now
            doing = Doing(moment=moment, seconds=now - began)
            temporary = self._path.with_suffix(".tmp")
            with suppress(OSError):  # a full disk ends no run
                temporary.write_text(json.dumps(asdict(doing)))
                temporary.replace(self._path)
            if self._is_over.wait(SECONDS_BETWEEN_BEATS):
                return


def read_doing(folder: Path, now: float) -> Doing | None:
    """What a run does; None where its process is gone, or keeps no such file.

    Args:
        folder: the run folder.
        now: seconds since 1970.
    """
    try:
        # The words and the age of one file, whatever takes its place meanwhile.
        with (folder / DOING_NAME).open() as file:
            told, age = json.load(file), now - os.fstat(file.fileno()).st_mtime
        doing = Doing(moment=str(told["moment"]), seconds=float(told["seconds"]) + max(age, 0.0))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return doing if age <= _MOST_SECONDS_BETWEEN_BEATS else None
