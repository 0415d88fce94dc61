"""Saving beside training: one thread per rank writes, the first one seals.

The step is held for a copy to the host. The thread writes the copy, sums while it writes, and
tells the first rank through the store in which the ranks met: no collective, which would meet
those of training. The first rank seals when every part is there, and tells the others.

A save that fails costs the run nothing yet: the last good checkpoint stands, the run says so and
goes on. It ends where two in a row fail, or the last one: then what it does is being lost.
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from meloformer.errors import CheckpointError
from meloformer.model.tensor_file import FileSum
from meloformer.training.leaving import before_leaving
from meloformer.training.processes import Processes
from meloformer.training.ranks import Ranks

# Below the time that a collective waits, so that a rank that does not write is named by the rank
# that waits for it.
WRITE_LIMIT = timedelta(minutes=15)
# A run that ends in an error waits for its save, but less for ranks that may be gone, and in all
# less than launchers wait before they kill, which is half a minute.
CLOSING_SECONDS = 20.0
ABSENT_SECONDS = 10.0
FAILURES_IN_A_ROW = 2
_POLL_SECONDS = 0.1

Write = Callable[[], dict[str, FileSum]]
Seal = Callable[[dict[str, FileSum]], Path]


@dataclass(frozen=True, kw_only=True)
class SaveOutcome:
    """How a save ended.

    Args:
        step: optimizer steps done.
        folder: of the checkpoint, as typed.
        error: why there is none; empty if there is one.
        seconds: from its start until it was sealed.
    """

    step: int
    folder: str
    error: str
    seconds: float

    def line(self) -> str:
        """The outcome in words."""
        if not self.error:
            return f"saved {self.folder}"
        return (
            f"error: the checkpoint of step {self.step} was not saved: {self.error}; the last good "
            "one stands and the run goes on; make room on the disk of --output: the run ends if "
            "the next save fails too"
        )


class BackgroundSaver:
    """The saves of a run, one after another.

    Args:
        ranks: the started processes.
        is_background: write in a thread; otherwise before `start` returns.
        tell: called on this rank's own thread of training with every outcome, once.
        store: through which the threads of several ranks speak; the one in which the ranks met if
            not given.
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        is_background: bool,
        tell: Callable[[SaveOutcome], None],
        store: dist.Store | None = None,
    ) -> None:
        self._ranks = ranks
        self._is_background = is_background
        self._tell = tell
        self._thread: threading.Thread | None = None
        self._outcome: SaveOutcome | None = None
        self._is_told = True
        self._failures_in_a_row = 0
        self._number = 0
        self.num_failed = 0
        self._is_closing = threading.Event()
        self._store = store
        self._processes = Processes(store) if store is not None else None
        if ranks.world_size > 1 and store is None:
            # A connection of its own: the other one may be held by a call that waits for a rank.
            met = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            self._store = dist.PrefixStore("meloformer/saves", met)
            self._processes = Processes(met)
        before_leaving(self._wait_to_close)

    def start(
        self, step: int, folder: Path, write: Write, seal: Seal, abandon: Callable[[], None]
    ) -> None:
        """Begin to save what `write` holds; every rank, in the same order, after `settle`.

        Args:
            step: optimizer steps done.
            folder: of the checkpoint, for messages.
            write: writes this rank's files; returns their sums by path within the checkpoint.
            seal: puts the checkpoint in place, given the sums of all; called on the first rank.
            abandon: removes what a failed save leaves behind; called on the first rank.
        """
        assert self._thread is None and self._is_told
        self._number += 1
        self._is_told, self._outcome = False, None
        arguments = (self._number, step, folder, write, seal, abandon)
        if self._is_background:
            self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
            self._thread.start()
        else:
            self._run(*arguments)
            self.settle()

    def poll(self) -> None:
        """Tell the outcome of a save that has ended meanwhile; waits for nobody."""
        if not self._is_told and (self._thread is None or not self._thread.is_alive()):
            assert self._outcome is not None
            self._is_told = True
            self.num_failed += bool(self._outcome.error)
            self._tell(self._outcome)

    def settle(self) -> None:
        """Wait for the save that is under way; collective.

        Raises:
            CheckpointError: on all ranks, when it failed and the one before too, or does not end.
        """
        if self._number == 0 or (self._thread is None and self._is_told):
            return
        # The first rank knows of all; the others end when it tells them, or they give up alike.
        self._join()
        is_stuck = [0.0] * self._ranks.world_size
        is_stuck[self._ranks.rank] = self._thread is not None and self._thread.is_alive()
        stuck = [str(rank) for rank, flag in enumerate(self._ranks.sum(is_stuck)) if flag]
        outcome = self._ranks.on_first(lambda: self._outcome)
        if stuck:
            minutes = WRITE_LIMIT.total_seconds() / 60
            raise CheckpointError(
                f"a save has not ended within {minutes:.3g} minutes on rank {', '.join(stuck)}"
                f"{f' ({outcome.error})' if outcome and outcome.error else ''}; look at the disk "
                "of --output, then go on from the last good checkpoint with --resume auto"
            )
        assert outcome is not None
        self._outcome = outcome
        self.poll()
        self._thread = None
        if self._store is not None and self._ranks.is_first:
            # All have heard of it. Another saver in this process would take it for its own.
            self._store.delete_key(f"{self._number}/sealed")
        self._failures_in_a_row = self._failures_in_a_row + 1 if outcome.error else 0
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise CheckpointError(
                f"{outcome.folder}: {self._failures_in_a_row} saves in a row failed, the last "
                f"because of: {outcome.error}; make room on the disk of --output, then go on from "
                "the last good checkpoint with --resume auto"
            )

    def finish(self) -> None:
        """Wait for the last save of a run; collective.

        Raises:
            CheckpointError: on all ranks, when it failed.
        """
        self.settle()
        if self._failures_in_a_row and self._outcome:
            raise CheckpointError(
                f"{self._outcome.folder}: the last save of the run failed: {self._outcome.error}; "
                "make room on the disk of --output, then go on with --resume auto"
            )

    def close(self) -> None:
        """Wait for a save of a run that ends in whatever way; not collective."""
        self._wait_to_close()
        if self._thread is not None and not self._thread.is_alive():
            self.poll()
        self._thread = None

    def _wait_to_close(self) -> None:
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join(CLOSING_SECONDS)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(WRITE_LIMIT.total_seconds())

    def _run(
        self,
        number: int,
        step: int,
        folder: Path,
        write: Write,
        seal: Seal,
        abandon: Callable[[], None],
    ) -> None:
        began = time.perf_counter()
        error, sums = "", {}
        try:
            sums = write()
        except Exception as failure:  # a thread that dies silently would be waited for
            error = _describe(failure)
        if self._store is None:
            error = error or _attempt(lambda: seal(sums))
        else:
            try:
                error = self._agree(self._store, number, error, sums, seal)
            except RuntimeError as failure:
                error = f"the store of the ranks has gone ({failure})"
        if error and self._ranks.is_first:
            abandon()
        seconds = time.perf_counter() - began
        self._outcome = SaveOutcome(step=step, folder=str(folder), error=error, seconds=seconds)

    def _agree(
        self, store: dist.Store, number: int, error: str, sums: dict[str, FileSum], seal: Seal
    ) -> str:
        """Gather what every rank says on the first, seal, and tell all: why not, or nothing."""
        ranks = self._ranks
        if not ranks.is_first:
            said = {"error": error, "sums": {name: asdict(found) for name, found in sums.items()}}
            store.set(f"{number}/{ranks.rank}", json.dumps(said))
            answer = self._wait_for(0, store, f"{number}/sealed")
            return "the first rank has not sealed it" if answer is None else json.loads(answer)
        for rank in range(1, ranks.world_size):
            answer = self._wait_for(rank, store, f"{number}/{rank}")
            if answer is None:
                error = error or f"rank {rank} has not written its part"
                break
            other = json.loads(answer)
            error = error or (other["error"] and f"rank {rank}: {other['error']}")
            sums = sums | {name: FileSum(**found) for name, found in other["sums"].items()}
            store.delete_key(f"{number}/{rank}")
        error = error or _attempt(lambda: seal(sums))
        store.set(f"{number}/sealed", json.dumps(error))
        return error

    def _wait_for(self, rank: int, store: dist.Store, key: str) -> bytes | None:
        """What a rank has written there; None where it does not in time, or has ended."""
        assert self._processes
        deadline = time.monotonic() + WRITE_LIMIT.total_seconds()
        while True:
            # Asked first: it may have written, and ended then.
            has_ended = self._processes.ended([rank])
            if store.check([key]):
                return store.get(key)
            if has_ended:
                return None
            if self._is_closing.is_set():
                deadline = min(deadline, time.monotonic() + ABSENT_SECONDS)
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)


def _attempt(function: Callable[[], object]) -> str:
    try:
        function()
    except Exception as failure:  # as above
        return _describe(failure)
    return ""


def _describe(failure: Exception) -> str:
    if isinstance(failure, OSError) and failure.strerror:
        return f"{failure.strerror} ({failure.filename})" if failure.filename else failure.strerror
    return str(failure) or repr(failure)
