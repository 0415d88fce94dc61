"""Which processes of a run count as ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from meloformer.training.processes import Processes

if sys.platform != "linux":
    pytest.skip("no process can be looked at", allow_module_level=True)

# A process that does nothing until it is killed.
WAITS = "import sys; sys.stdin.read()"


def post_of(pid: int) -> str:
    """What a process would say of itself, had it come as a rank."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return json.dumps([f"{boot} {os.readlink('/proc/self/ns/pid')}", pid, stat[19]])


def test_a_process_says_of_itself_what_others_can_look_up() -> None:
    store = dist.HashStore()
    Processes(store).come(3)
    assert store.get("meloformer/processes/3").decode() == post_of(os.getpid())


def test_a_process_that_is_killed_has_ended_also_before_its_parent_looks() -> None:
    store = dist.HashStore()
    processes = Processes(store)
    processes.come(0)
    with subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as other:
        store.set("meloformer/processes/1", post_of(other.pid))
        assert processes.ended([0, 1, 2]) == []
        os.kill(other.pid, 9)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it stays, as a zombie
        assert processes.ended([0, 1, 2]) == [1]
    assert processes.ended([0, 1, 2]) == [1]


def test_a_process_that_took_the_number_of_another_is_not_taken_for_it() -> None:
    store = dist.HashStore()
    where, pid, began = json.loads(post_of(os.getpid()))
    store.set("meloformer/processes/1", json.dumps([where, pid, str(int(began) - 1)]))
    assert Processes(store).ended([1]) == [1]


def test_a_process_that_left_or_runs_elsewhere_has_not_ended() -> None:
    store = dist.HashStore()
    processes = Processes(store)
    processes.come(1)
    processes.leave(1)
    _, _, began = json.loads(post_of(os.getpid()))
    store.set("meloformer/processes/2", json.dumps(["another machine", 0, began]))
    assert processes.ended([1, 2]) == []
