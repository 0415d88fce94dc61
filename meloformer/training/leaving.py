"""How the processes of a run end: together, with one message, and nobody left waiting.

Before the process group is up there is nobody to agree with, and each process speaks for itself.
"""

import hashlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist

from meloformer.command_line import EXIT_REFUSED
from meloformer.errors import MeloFormerError, TrainingError
from meloformer.interrupts import asked_to_stop
from meloformer.training.processes import Processes

# Of a rank that ends because it was left alone: launchers start a run anew after it.
EXIT_DESERTED = 1
GRACE_SECONDS = 2.0  # for the other ranks to refuse too
# Without the store no rank can say why it ends; a process that goes on so long waits for nobody.
ORPHAN_SECONDS = 60.0
# Nor for a launcher that has told it to stop: half a minute later that would kill it.
TOLD_ORPHAN_SECONDS = 10.0
_POLL_SECONDS = 0.5
_REFUSED = "meloformer/refused"
_DESERTED = "meloformer/deserted"
_FIRST_HAS_ENDED = (
    "the first rank has ended; its own message says why, unless it was killed: go on with "
    "--resume auto"
)

_is_refusing = False
_watcher: threading.Thread | None = None
_is_over = threading.Event()
_before_leaving: list[weakref.WeakMethod] = []


class FirstRankError(TrainingError):
    """The first rank has failed and shows its own traceback; no refusal."""


class OutOfMemoryError(TrainingError):
    """A device has no room for what a rank wants to compute."""


@contextmanager
def leave_together() -> Iterator[None]:
    """End all ranks with the refusal of any: each message once, and no traceback on the others.

    The store that the ranks met through knows who has refused: a rank with a message asks it
    whether another has said the same, and a rank whose collective breaks asks whether that is
    why. Where every rank refuses alike, one says so and the others end without a word.

    Raises:
        MeloFormerError: the refusal, where this rank is the one to say it.
    """
    try:
        yield
    except FirstRankError:
        raise
    except MeloFormerError as error:
        if not _is_alone():
            # Ranks that run out of memory together say so with other numbers each: one suffices.
            is_memory = isinstance(error, OutOfMemoryError)
            _end_unless_first_to_say("out of memory" if is_memory else str(error))
        raise
    except RuntimeError as error:
        # What a collective raises when the process at the other end has gone.
        if not _is_alone():
            _end_if_others_refused(error)
            _end_if_others_have_ended(error)
        raise


def watch_others() -> None:
    """Start to look, beside all else, whether another rank has ended with a message.

    A collective over sockets breaks when the process at its other end is gone; one on GPUs waits
    until its timeout, and half an hour of an idle cluster with it.
    """
    global _watcher
    if not _is_alone():
        # A connection of its own: the other one may be held by a call that waits for a rank.
        store = _store().clone()  # type: ignore[attr-defined]  # absent from torch's stubs
        _watcher = threading.Thread(target=_end_after_others, args=(store,), daemon=True)
        _watcher.start()


def _end_after_others(store: dist.Store) -> None:
    orphaned_at = None
    while not (_is_refusing or _is_over.wait(_POLL_SECONDS)):
        try:
            has_refused = store.add(_REFUSED, 0) > 0
        except RuntimeError:
            orphaned_at = orphaned_at or time.monotonic()
            limit = TOLD_ORPHAN_SECONDS if asked_to_stop() else ORPHAN_SECONDS
            if time.monotonic() - orphaned_at > limit:
                sys.stderr.write(f"error: {_FIRST_HAS_ENDED}\n")
                _end(store)
            continue
        # This rank may have a message too, or be about to end by itself.
        if has_refused and not _is_over.wait(GRACE_SECONDS / 4) and not _is_refusing:
            _end(store)


def before_leaving(method: Callable[[], None]) -> None:
    """Call a method before this process ends because another rank does, if its object is there.

    Args:
        method: ends by itself within seconds; may be called from another thread.
    """
    _before_leaving.append(weakref.WeakMethod(method))


def end_at_once(status: int) -> NoReturn:
    """End this process without the usual clean-up, which may wait for ranks that do not answer.

    Args:
        status: of the process.
    """
    for method in [reference() for reference in _before_leaving]:
        if method:
            method()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave() -> None:
    """Leave the process group at the end of the process, unless it ends in an error.

    Not earlier: DeepSpeed keeps groups of its own, and a second run in the same process (a test,
    a notebook) goes on with them. Not after an error: the others may no longer answer.
    """
    _is_over.set()
    if _watcher:
        # A thread that comes back from the store while Python shuts down would abort the process.
        _watcher.join(_POLL_SECONDS)
    if _is_refusing:
        _end()
    if dist.is_initialized() and not hasattr(sys, "last_value"):
        dist.destroy_process_group()


def _end_unless_first_to_say(message: str) -> None:
    global _is_refusing
    digest = hashlib.sha256(message.encode()).hexdigest()
    try:
        is_said = _store().add(f"{_REFUSED}/{digest}", 1) > 1
    except RuntimeError:
        is_said = False  # the rank that held the store has ended: nobody to agree with
    if is_said:
        _end()
    _is_refusing = True


def _end_if_others_refused(error: RuntimeError) -> None:
    global _is_refusing
    try:
        has_refused = _store().add(_REFUSED, 0) > 0
    except RuntimeError:
        _is_refusing = True
        raise TrainingError(_FIRST_HAS_ENDED) from error
    if has_refused:
        _end()


def _end_if_others_have_ended(error: RuntimeError) -> None:
    """Name the ranks of this host that are gone: what was killed says nothing, and who waited for
    it in a collective knows of a lost connection at most.
    """
    try:
        store = _store()
        gone = Processes(store).ended(range(dist.get_world_size()))
        if not gone:
            return
        who = f"rank {', '.join(map(str, gone))}"
        is_said = store.add(f"{_DESERTED}/{who}", 1) > 1
    except RuntimeError:
        return
    if not is_said:
        sys.stderr.write(
            f"error: {who} has ended, killed perhaps (by the system, for want of memory?) if it "
            f"said nothing above; go on with --resume auto. Noticed by rank {dist.get_rank()}: "
            f"{str(error).splitlines()[0][:200]}\n"
        )
    if dist.get_rank() == 0:
        # It may hold the store, in which the others look too.
        time.sleep(GRACE_SECONDS / 4)
    end_at_once(EXIT_DESERTED)


def _end(store: dist.Store | None = None) -> None:
    """Say that this rank refuses, give the others a moment to do the same, and end.

    Without the usual clean-up, which waits for ranks that no longer answer. Whoever has a message
    has written it by now: the launcher kills every rank as soon as one has ended.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    store = store or _store()
    try:
        store.add(_REFUSED, 1)
        while store.add(_REFUSED, 0) < dist.get_world_size() and time.monotonic() < deadline:
            time.sleep(0.05)
        if dist.get_rank() == 0:
            # It may hold the store, in which the others look once more.
            time.sleep(0.3)
    except RuntimeError:
        pass  # the store has ended, and with it whoever could be waited for
    end_at_once(EXIT_REFUSED)


def _is_alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
