import os
import signal
import subprocess
import sys
import time
from functools import partial
from operator import methodcaller
from pathlib import Path

import pytest

from meloformer.shards.pool import Died, run_in_pool

# A parent whose workers write their process ids and then sleep.
_PARENT = """
import sys, time
from meloformer.shards.pool import run_in_pool

def work(folder):
    import os, pathlib
    (pathlib.Path(folder) / str(os.getpid())).touch()
    time.sleep(3600)

if __name__ == "__main__":
    list(run_in_pool(work, [sys.argv[1]] * 2, num_workers=2))
"""


def test_every_job_comes_back_with_its_result() -> None:
    results = dict(run_in_pool(abs, range(-20, 0), num_workers=2))
    assert results == {number: -number for number in range(-20, 0)}


def test_what_a_task_raises_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_in_pool(partial(divmod, 1), [0], num_workers=1))


def test_a_job_whose_worker_dies_is_returned_and_the_rest_goes_on() -> None:
    jobs = [partial(abs, number) for number in range(-5, 0)]
    jobs.insert(2, partial(os._exit, 1))
    call = methodcaller("__call__")
    results = list(run_in_pool(call, jobs, num_workers=1, jobs_per_worker=1))
    assert [job for job, _ in results] == jobs
    assert [result for _, result in results if not isinstance(result, Died)] == [5, 4, 3, 2, 1]
    assert isinstance(results[2][1], Died)


def test_jobs_are_drawn_only_as_they_are_needed() -> None:
    drawn = 0

    def jobs() -> object:
        nonlocal drawn
        for number in range(1000):
            drawn += 1
            yield number

    results = run_in_pool(abs, jobs(), num_workers=1)  # type: ignore[arg-type, var-annotated]
    next(results)
    assert drawn < 20
    results.close()  # type: ignore[attr-defined]


def test_workers_run_one_thread_each_and_leave_the_parent_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert list(run_in_pool(os.getenv, ["OMP_NUM_THREADS"], num_workers=1)) == [
        ("OMP_NUM_THREADS", "1")
    ]
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_workers_of_a_killed_parent_end(tmp_path: Path) -> None:
    script, seen = tmp_path / "parent.py", tmp_path / "seen"
    script.write_text(_PARENT)
    seen.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(seen)])
    wait_until(lambda: len(list(seen.iterdir())) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    workers = [int(path.name) for path in seen.iterdir()]
    wait_until(lambda: not any(is_running(worker) for worker in workers))


def wait_until(claim: object, patience_seconds: float = 300.0) -> None:
    deadline = time.monotonic() + patience_seconds
    while not claim():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_ctrl_c_while_workers_start_waits_for_them_and_is_then_raised() -> None:
    # Alone in a process: a thread of the tests' own may take the signal, and hand it on late.
    code = """
import os, signal
from meloformer.shards.pool import _signals_wait

# A shell starts what runs in its background deaf to Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with _signals_wait():
        signal.raise_signal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        print("survived")
except KeyboardInterrupt:
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("raised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "survived\nraised\n", "")
