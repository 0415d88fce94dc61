"""How many cores of its host a process may keep busy."""

import os
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
# Quota and period, as Linux shows a container its own limits: version 2, version 1.
_PLACES = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))


def cores_at_hand(control_groups: Path = _CONTROL_GROUPS) -> int:
    """Cores that this process may run on, and no more than its container is granted.

    A container with a quota of four cores on a large host sees all of them, and runs on each a
    little at a time.

    Args:
        control_groups: where the limits stand.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    for places in _PLACES:
        try:
            quota, period = " ".join((control_groups / one).read_text() for one in places).split()
            granted = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue  # not there, or "max"
        if granted > 0:
            cores = min(cores, max(int(granted), 1))
    return cores
