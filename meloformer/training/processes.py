"""Which processes of a run have ended, as far as their host can see.

A rank that is killed says nothing, and who waits for it in a collective on GPUs waits long. So each
rank tells the others through the store which process it is; those on its host can look.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")


class Processes:
    """The processes of a run, through a store in which all of them write.

    Args:
        store: in which the ranks met; used by the thread that calls.
    """

    def __init__(self, store: dist.Store) -> None:
        self._store = dist.PrefixStore("meloformer/processes", store)
        self._here = _here()
        self._elsewhere: set[int] = set()

    def come(self, rank: int) -> None:
        """Say that that rank is this process."""
        pid = os.getpid()
        self._store.set(str(rank), json.dumps([self._here, pid, _began(pid)]))

    def leave(self, rank: int) -> None:
        """Say that this process will end, as all of them do: nobody is to miss it."""
        self._store.set(str(rank), json.dumps([None, 0, None]))

    def ended(self, ranks: Iterable[int]) -> list[int]:
        """Those of some ranks that ran on this host and have ended without leave.

        Raises:
            RuntimeError: the store has gone.
        """
        found = []
        for rank in ranks:
            if rank in self._elsewhere or not self._store.check([str(rank)]):
                continue
            where, pid, began = json.loads(self._store.get(str(rank)))
            if where is None or where != self._here:
                self._elsewhere.add(rank)
            elif _began(pid) != began:
                found.append(rank)
        return found


def _here() -> str | None:
    """Whose process numbers this process sees; None where the system does not tell.

    Containers of one machine may share its name, and see only their own processes.
    """
    if sys.platform != "linux":
        return None
    try:
        return f"{_BOOT.read_text().strip()} {_PIDS.readlink()}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """When a process of this host began, in ticks since the start of the system; None if it ended.

    A number may be given again to another process, which began later.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # proc(5); the name before it, in brackets, may hold anything.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
