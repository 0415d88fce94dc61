"""How the processes of a run end: together, with one message, and nobody left waiting.

Before the process group is up there is nobody to agree with, and each process speaks for itself.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from meloformer.command_line import EXIT_REFUSED
from meloformer.errors import MeloFormerError, TrainingError

GRACE_SECONDS = 2.0  # for the other ranks to refuse too
_REFUSED = "meloformer/refused"

_is_refusing = False


class FirstRankError(TrainingError):
    """The first rank has failed and shows its own traceback; no refusal."""


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
            _end_unless_first_to_say(str(error))
        raise
    except RuntimeError as error:
        # What a collective raises when the process at the other end has gone.
        if not _is_alone():
            _end_if_others_refused(error)
        raise


def leave() -> None:
    """Leave the process group at the end of the process, unless it ends in an error.

    Not earlier: DeepSpeed keeps groups of its own, and a second run in the same process (a test,
    a notebook) goes on with them. Not after an error: the others may no longer answer.
    """
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
        raise TrainingError("the first rank has ended; its own message says why") from error
    if has_refused:
        _end()


def _end() -> None:
    """Say that this rank refuses, give the others a moment to do the same, and end.

    Without the usual clean-up, which waits for ranks that no longer answer. Whoever has a message
    has written it by now: the launcher kills every rank as soon as one has ended.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        _store().add(_REFUSED, 1)
        while _store().add(_REFUSED, 0) < dist.get_world_size() and time.monotonic() < deadline:
            time.sleep(0.05)
    except RuntimeError:
        pass  # the store has ended, and with it whoever could be waited for
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_REFUSED)


def _is_alone() -> bool:
    return not dist.is_initialized() or dist.get_world_size() == 1


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
