"""The store in which the ranks meet, free of what an earlier start has left there.

Where torchrun restarts a run, its agent keeps one store over all starts, and nothing in it says
which start a key is of: a rank may find the address of a process that has ended, or the refusal of
one. The number of restarts does not tell starts apart either, for agents on several hosts count for
themselves. So the first rank names the start, and another one believes the name only if it answers
a word that it has just made up itself.
"""

import json
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from meloformer.errors import TrainingError
from meloformer.interrupts import STOP_NAMES, asked_to_stop

# For ranks that come late, once this one is told to stop: where one of them has failed before it
# came, a launcher tells the others so, and kills them half a minute later.
STOPPED_SECONDS = 10.0
_POLL_SECONDS = 0.05


def meet(store: dist.Store, rank: int, world_size: int, limit: timedelta) -> dist.Store:
    """Wait for all ranks of this start; collective.

    Args:
        store: that all of them reach, and others before them have reached.
        rank: 0 .. world_size - 1.
        world_size: number of processes.
        limit: for all to come.

    Returns:
        A part of the store in which nobody has written yet.

    Raises:
        TrainingError: some have not come.
    """
    patience = _Patience(limit)
    word = uuid.uuid4().hex
    if rank == 0:
        others = range(1, world_size)
        answered: dict[str, str] | None = None
        while True:
            heard = {str(r): store.get(f"word/{r}").decode() for r in others if _has(store, r)}
            if heard != answered:
                store.set("start", json.dumps([word, heard]))
                answered = heard
            missing = [r for r in others if not store.check([f"{word}/{r}"])]
            if not missing:
                return dist.PrefixStore(word, store)
            patience.wait(f"rank(s) {', '.join(map(str, missing))}")
    store.set(f"word/{rank}", word)
    while True:
        if store.check(["start"]):
            start, answered = json.loads(store.get("start"))
            if answered.get(str(rank)) == word:
                store.set(f"{start}/{rank}", "")
                return dist.PrefixStore(start, store)
        patience.wait("the first rank")


def _has(store: dist.Store, rank: int) -> bool:
    return store.check([f"word/{rank}"])


class _Patience:
    """How long to wait for others: less, once this process is told to stop."""

    def __init__(self, limit: timedelta) -> None:
        self._deadline = time.monotonic() + limit.total_seconds()

    def wait(self, whom: str) -> None:
        asked = asked_to_stop()
        if asked:
            self._deadline = min(self._deadline, time.monotonic() + STOPPED_SECONDS)
        if time.monotonic() > self._deadline:
            stopped = f"stopped by {STOP_NAMES[asked]} before the first step: " if asked else ""
            raise TrainingError(
                f"{stopped}{whom} did not come to the store of the ranks in time; look at what the "
                "launcher says of those processes, then start again"
            )
        time.sleep(_POLL_SECONDS)
