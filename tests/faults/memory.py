"""Rows of the table of faults: a rank that runs out of memory."""

import time

import psutil

from tests.faults.rows import SAVE_EVERY, Drill, FaultRow, fault
from tests.faults.runs import limit

# Room goes back to the system as soon as it is free, so that a step has to ask for it again.
ASK_AGAIN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
# Longer than a step: some moment of it is the emptiest.
WATCH_SECONDS = 2.0


@fault("out of memory on one rank", ranks=2)
def out_of_memory(drill: Drill) -> FaultRow:
    """The last rank may have no more, from some step on, than it has between two batches."""
    with drill.start(2, environment=ASK_AGAIN) as run:
        run.wait_for_step(SAVE_EVERY + 1)
        victim = run.ranks()[1]
        limit(victim, psutil.RLIMIT_AS, _least_bytes(victim))
        struck = run.strike()
        reason = r"error: out of memory on rank 1 \(cpu\) in .*step \d+"
        detected, complaints = run.end_by_fault(struck, reason)
    return drill.go_on(struck, detected_s=detected, complaints=complaints)


def _least_bytes(process: psutil.Process) -> int:
    """Address space at the emptiest moment of a while."""
    least, until = process.memory_info().vms, time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        least = min(least, process.memory_info().vms)
        time.sleep(0.001)
    return least


ROWS = [out_of_memory]
