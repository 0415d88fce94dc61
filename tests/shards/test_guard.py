"""Limits of one file, as a worker feels them."""

import faulthandler
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from meloformer.errors import ConfigError
from meloformer.shards.guard import FileLimits, Guard, TimeIsUp


def test_time_that_is_up_ends_the_file_and_not_the_next_one(monkeypatch: pytest.MonkeyPatch):
    # It would end this process, if that is not let run for twice so short a time.
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    with Guard(FileLimits(file_seconds=0.1)) as guard:
        with pytest.raises(TimeIsUp), guard.limited():
            time.sleep(3600)
        time.sleep(0.2)  # no alarm goes off between two files
        guard.limits = FileLimits(file_seconds=3600)
        with guard.limited():
            time.sleep(0.01)


def test_a_file_that_is_deaf_to_the_alarm_ends_its_process():
    code = """
from meloformer.shards.guard import FileLimits, Guard

with Guard(FileLimits(file_seconds=0.1)) as guard, guard.limited():
    print("begun", flush=True)
    sum(range(10**15))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"begun\n", b"")


def test_memory_that_is_up_ends_the_file_and_not_the_next_one():
    with Guard(FileLimits(file_megabytes=200)) as guard:
        with pytest.raises(MemoryError), guard.limited():
            bytearray(400 << 20)
        with guard.limited():
            assert len(bytearray(50 << 20)) == 50 << 20


def test_a_process_has_its_own_limits_back_afterwards():
    before = (resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGALRM))
    with Guard(FileLimits()):
        pass
    after = (resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGALRM))
    assert after == before


def test_a_product_of_matrices_does_not_end_a_process_of_little_memory():
    code = """
import numpy as np
from meloformer.shards.guard import FileLimits, Guard

with Guard(FileLimits(file_megabytes=16)) as guard, guard.limited():
    square = np.ones((512, 512))
    assert (square @ square == 512).all()
"""
    # As a worker: with more threads each takes memory of its own.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("limits", [{"file_seconds": 0}, {"file_megabytes": -1}])
def test_a_limit_that_lets_nothing_through_is_refused(limits: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        FileLimits(**limits)
