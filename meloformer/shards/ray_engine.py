"""Jobs of a build on a Ray cluster: the same tasks, the same bytes, on many machines.

The nodes share the input and the output folder; Ray carries jobs and their small results alone.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from meloformer.errors import ConfigError, ShardError
from meloformer.shards.pool import DIED, Died, Job, Result, Run

# One to run and some to go on with.
_JOBS_PER_CORE = 3
_CONNECT_SECONDS = 5.0


def ray_engine(say: Callable[[str], object] = lambda text: None) -> Run:
    """Run jobs as Ray tasks of one core each, on all cores of the cluster.

    Connects to the cluster that RAY_ADDRESS names, else to one that runs on this machine, else
    starts one here.

    Args:
        say: called with a line on where the jobs will run.

    Raises:
        ConfigError: Ray is not installed.
        ShardError: there is no cluster at RAY_ADDRESS.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"--engine ray needs the extra `ray` ({error}); install it with "
            "`pip install 'meloformer[ray]'`"
        ) from error
    if not ray.is_initialized():
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        say(_connect(ray))

    def run(
        task: Callable[[Job], Result], jobs: Iterable[Job], *, one_by_one: bool = False
    ) -> Iterator[tuple[Job, Result | Died]]:
        cores = int(ray.cluster_resources().get("CPU", 1))
        most = 1 if one_by_one else _JOBS_PER_CORE * cores
        return _run(ray, task, jobs, most)

    return run


def _connect(ray: Any) -> str:
    """Find or start a cluster; a line on which it is."""
    quiet = {"log_to_driver": False, "configure_logging": False}
    found = "the Ray cluster"
    # Ray has an answer of its own to SIGTERM, which says nothing of how to go on.
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            try:
                ray.init(address="auto", **quiet)
            except ConnectionError:
                ray.init(address="local", **quiet)
                found = "a Ray of this machine alone, started for this build; a cluster is found"
                found += " by `RAY_ADDRESS=<host>:6379`, the address that `ray start --head` prints"
    except (ConnectionError, RuntimeError) as error:
        raise ShardError(
            f"no Ray cluster ({error}); start one with `ray start --head`, or name one in "
            "RAY_ADDRESS"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_terminate)
    cores = int(ray.cluster_resources().get("CPU", 1))
    return f"--engine ray: {cores} cores of {found}"


def _check_address(address: str) -> None:
    """Ray itself tries an address where nobody answers for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():  # `auto`, `ray://...`, or none
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ShardError(
            f"no Ray cluster at RAY_ADDRESS {address} ({error}); start one with "
            "`ray start --head`, or give the address that it prints"
        ) from error


def _run(
    ray: Any, task: Callable[[Job], Result], jobs: Iterable[Job], most: int
) -> Iterator[tuple[Job, Result | Died]]:
    # A job that died is not tried again here: its files have to be looked at one by one.
    remote = ray.remote(num_cpus=1, max_retries=0)(_call).options(name=_name(task))
    shared = ray.put(task)
    waiting = iter(jobs)
    running: dict[Any, Job] = {}
    while True:
        while len(running) < most:
            try:
                job = next(waiting)
            except StopIteration:
                break
            running[remote.remote(shared, job)] = job
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            job = running.pop(reference)
            yield job, _result(ray, reference)


def _call(task: Callable[[Job], Result], job: Job) -> Result:
    return task(job)


def _result(ray: Any, reference: Any) -> Any:
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError)
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except lost:
        return DIED
    except (ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError):
        return DIED


def _name(task: Any) -> str:
    """For Ray's own lists of tasks."""
    return getattr(getattr(task, "func", task), "__name__", type(task).__name__)
