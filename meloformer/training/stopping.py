"""A run that is asked to stop: all ranks agree on the step, save after it and end.

A signal to any rank suffices. Every rank's own word travels in a sum that each step makes anyway,
so all of them learn of it at the same place; whatever else takes long (compiling, a validation)
asks between its parts. Beside that a thread spreads the word through the store in which the ranks
met, for what only one rank does, and finds out whether all ranks live: a launcher whose rank has
died sends SIGTERM to the others, which would wait in a collective for one that never comes.
"""

import atexit
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch.distributed as dist

from meloformer.interrupts import (
    EXIT_INTERRUPTED,
    STOP_NAMES,
    ask_to_stop,
    asked_to_stop,
)
from meloformer.training.leaving import EXIT_DESERTED, end_at_once
from meloformer.training.processes import Processes
from meloformer.training.ranks import Ranks

# Status of a rank after a stop, for those who want to tell it from the end of the run.
STATUS_VARIABLE = "MELOFORMER_STOPPED_STATUS"
# Until a rank that lives has answered; launchers wait half a minute before they kill.
ANSWER_SECONDS = 15.0
_POLL_SECONDS = 0.5
_SIGNALS = tuple(STOP_NAMES)


class Stopping:
    """Whether the run is to stop, and whether all ranks know; making one is collective.

    Args:
        ranks: the started processes.
        asked: the signal that this process has got.
    """

    def __init__(
        self, ranks: Ranks, asked: Callable[[], signal.Signals | None] = asked_to_stop
    ) -> None:
        self._ranks, self._asked = ranks, asked
        self._agreed: signal.Signals | None = None
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._processes: Processes | None = None
        if ranks.world_size > 1:
            # A connection of its own: the other one may be held by a call that waits for a rank.
            met = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            # Ranks that an agent starts anew may meet in the store of those that it has stopped.
            name = ranks.on_first(lambda: uuid.uuid4().hex)
            store = dist.PrefixStore(f"meloformer/stop/{name}", met)
            self._processes = Processes(met)
            self._processes.come(ranks.rank)
            self._thread = threading.Thread(
                target=self._spread, args=(store, self._processes), daemon=True
            )
            self._thread.start()
            atexit.register(self.close)

    @property
    def is_agreed(self) -> bool:
        """Whether the run stops; the same on all ranks at the same place."""
        return self._agreed is not None

    @property
    def name(self) -> str:
        """What the run is stopped by."""
        assert self._agreed is not None
        return STOP_NAMES[self._agreed]

    @property
    def exit_status(self) -> int:
        """Of this process: 0, also after a stop, unless somebody wants to know of it.

        After Ctrl-C a process that is alone says so to its shell, which would otherwise go on with
        the next command.
        """
        if self._agreed is None:
            return 0
        if self._agreed == signal.SIGINT and self._ranks.world_size == 1:
            return EXIT_INTERRUPTED
        return int(os.environ.get(STATUS_VARIABLE, "0"))

    def is_asked(self) -> bool:
        """Whether this rank knows of a signal; others may not yet: decides no collective."""
        return self.is_agreed or self._asked() is not None

    def own_word(self) -> list[float]:
        """What this rank adds to a sum over ranks that `agree` is given."""
        asked = self._asked()
        return [float(asked == number) for number in _SIGNALS]

    def agree(self, sums: Sequence[float]) -> None:
        """Take what all ranks have said; where several signals came, one of them counts."""
        if self._agreed is None:
            said = [number for number, total in zip(_SIGNALS, sums, strict=True) if total]
            self._agreed = said[0] if said else None

    def ask(self) -> bool:
        """Ask all ranks here and now; collective."""
        if not self.is_agreed:
            self.agree(self._ranks.sum(self.own_word()))
        return self.is_agreed

    def close(self) -> None:
        """End the thread: it must not come back from the store while Python shuts down."""
        self._is_over.set()
        if self._thread:
            self._thread.join(ANSWER_SECONDS)
        has_failed = sys.exc_info()[0] is not None or hasattr(sys, "last_value")
        if self._processes and self._thread and not self._thread.is_alive() and not has_failed:
            with suppress(RuntimeError):  # the store has gone, and with it who could miss this rank
                self._processes.leave(self._ranks.rank)

    def _spread(self, store: dist.Store, processes: Processes) -> None:
        others = [rank for rank in range(self._ranks.world_size) if rank != self._ranks.rank]
        heard_at: float | None = None
        has_told = False
        while not self._is_over.wait(_POLL_SECONDS):
            try:
                asked = self._asked()
                if asked and not has_told:
                    store.set("asked", str(int(asked)))
                    has_told = True
                if heard_at is None:
                    if store.check(["asked"]):
                        ask_to_stop(signal.Signals(int(store.get("asked"))))
                        store.set(f"heard/{self._ranks.rank}", "")
                        heard_at = time.monotonic()
                    continue
                if gone := processes.ended(others):
                    why = "found ended"
                elif time.monotonic() - heard_at > ANSWER_SECONDS:
                    gone = [rank for rank in others if not store.check([f"heard/{rank}"])]
                    why = f"found no answer within {ANSWER_SECONDS:.0f} s from"
                if gone and not self._is_over.is_set():
                    _desert(gone, why)
                    return
            except RuntimeError:
                return  # the store has gone, and with it the first rank: others look after that


def _desert(gone: Sequence[int], why: str) -> None:
    """End without the others; a collective that waits for a dead rank may never return.

    A save that needs nothing more of them is finished.
    """
    sys.stderr.write(
        f"error: asked to stop, and {why} rank {', '.join(map(str, gone))}, without which no "
        "further step can be saved; go on from the last checkpoint with --resume auto\n"
    )
    end_at_once(EXIT_DESERTED)
