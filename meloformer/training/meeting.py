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
    deadline = time.monotonic() + limit.total_seconds()
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
            _wait(deadline, f"rank(s) {', '.join(map(str, missing))}")
    store.set(f"word/{rank}", word)
    while True:
        if store.check(["start"]):
            start, answered = json.loads(store.get("start"))
            if answered.get(str(rank)) == word:
                store.set(f"{start}/{rank}", "")
                return dist.PrefixStore(start, store)
        _wait(deadline, "the first rank")


def _has(store: dist.Store, rank: int) -> bool:
    return store.check([f"word/{rank}"])


def _wait(deadline: float, whom: str) -> None:
    if time.monotonic() > deadline:
        raise TrainingError(
            f"{whom} did not come to the store of the ranks in time; look at what the launcher "
            "says of those processes, then start again"
        )
    time.sleep(_POLL_SECONDS)
