"""Worker processes that may die: a job is lost with its worker, never the build."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_JOBS_PER_WORKER = 3


class Died(Generic[Job]):
    """In the place of a result: a worker died while this job was handed out."""


DIED: Died = Died()


class Run(Protocol):
    """An engine: runs a task over jobs somewhere, and says which jobs were lost."""

    def __call__(
        self, task: Callable[[Job], Result], jobs: Iterable[Job], *, one_by_one: bool = False
    ) -> Iterator[tuple[Job, Result | Died]]:
        """Results as they are ready, DIED in the place of those whose worker died.

        Args:
            task: a picklable function.
            jobs: picklable; drawn only as they are needed.
            one_by_one: one job at a time, so that a death has one suspect.
        """


def local_engine(num_workers: int) -> Run:
    """Runs jobs in processes of this machine."""

    def run(
        task: Callable[[Job], Result], jobs: Iterable[Job], *, one_by_one: bool = False
    ) -> Iterator[tuple[Job, Result | Died]]:
        if one_by_one:
            return run_in_pool(task, jobs, num_workers=1, jobs_per_worker=1)
        return run_in_pool(task, jobs, num_workers=num_workers)

    return run


def run_in_pool(
    task: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    num_workers: int,
    jobs_per_worker: int = _JOBS_PER_WORKER,
) -> Iterator[tuple[Job, Result | Died]]:
    """Run a task over jobs in fresh processes; results come as they are ready.

    A worker that dies takes all jobs that were handed out with it: each comes back with DIED, and
    the rest go on in a new pool. Jobs are drawn only as they are needed.

    Args:
        task: a picklable function.
        jobs: picklable.
        num_workers: processes.
        jobs_per_worker: jobs handed out at once: one to run and some to go on with.

    Raises:
        whatever the task raises.
    """
    waiting = iter(jobs)
    running: dict[Future[Result], Job] = {}
    with _one_thread_per_child():
        pool = _new_pool(num_workers)
        try:
            while True:
                died = _hand_out(pool, task, waiting, running, jobs_per_worker * num_workers)
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        died.append(job)
                    else:
                        yield job, result
                if died:
                    yield from ((job, DIED) for job in [*died, *running.values()])
                    running.clear()
                    pool.shutdown()
                    pool = _new_pool(num_workers)
        except BaseException:
            # Whoever stops a build does not wait for its files; what is half done is done again.
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _hand_out(
    pool: ProcessPoolExecutor,
    task: Callable[[Job], Result],
    waiting: Iterator[Job],
    running: dict[Future[Result], Job],
    most: int,
) -> list[Job]:
    """Fill the pool; returns jobs that it was too broken to take."""
    while len(running) < most:
        try:
            job = next(waiting)
        except StopIteration:
            break
        try:
            with _signals_wait():
                running[pool.submit(task, job)] = job
        except BrokenProcessPool:
            return [job]
    return []


def _new_pool(num_workers: int) -> ProcessPoolExecutor:
    # Not forked from the parent, which may hold threads and their locks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["meloformer.shards.build"])
    return ProcessPoolExecutor(
        num_workers,
        mp_context=context,
        initializer=_start_worker,
    )


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C for all
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A killed parent cannot stop its workers; they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let no signal tear a worker that is being started: it would complain of half a parent.

    The worker inherits the blocked Ctrl-C, so that it is deaf while it imports. That alone would
    not do for the parent, whose other threads take the signal and hand it to this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda got, _: arrived.append(got)) for number in numbers]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        for got in arrived:
            signal.raise_signal(got)


@contextmanager
def _one_thread_per_child() -> Iterator[None]:
    """Workers share the cores already; numpy reads this when a child imports it."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
