"""Ranks that stall, as processes of their own: all of them end, and one says who is to blame."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from meloformer.errors import ConfigError
from meloformer.training.ranks import Ranks
from meloformer.training.stall_report import Post, describe_stack, find_stalled
from meloformer.training.stalls import EXIT_STALLED, SLOW_SECONDS, StallConfig, StallWatch
from tests.training.launching import TIME_LIMIT_SECONDS, free_port

# On a machine that stands still for a while, a rank that nothing is wrong with stalls too, and is
# named for it. So a play that ends otherwise than it must is played again, with more patience.
PATIENCE_SECONDS = (1.5, 6.0, 24.0)
LIMIT_SECONDS = TIME_LIMIT_SECONDS / len(PATIENCE_SECONDS)
FAULT_STEP = 3

FORK = multiprocessing.get_context("fork")


def one_rank(
    rank: int,
    world_size: int,
    run: Path,
    timeout_seconds: float,
    port: int,
    fault: Callable[[int], None],
    barrier,
) -> None:
    """Steps in which all ranks wait for each other, and a fault in one of them."""
    torch.set_num_threads(1)
    os.dup2(os.open(run / f"said-{rank}.txt", os.O_CREAT | os.O_WRONLY), 2)
    store = None
    if world_size > 1:
        limit = timedelta(seconds=LIMIT_SECONDS)
        store = dist.TCPStore("127.0.0.1", port, world_size, rank == 0, timeout=limit)
    ranks = Ranks(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    watch = StallWatch(ranks, timeout_seconds, run, 1, store)
    watch.start()
    for step in range(1, 1000):
        watch.at(f"the data of step {step}", is_slow=False)
        if step == FAULT_STEP:
            # Whoever has never been heard of is not told from one that has not started.
            while store and not (watch._exchanges and watch._first):
                time.sleep(0.01)
            barrier.wait(LIMIT_SECONDS)
            fault(rank)
        watch.at(f"the count of step {step}")
        barrier.wait(LIMIT_SECONDS)
        time.sleep(0.1)


def play(
    folder: Path,
    world_size: int,
    fault: Callable[[int], None],
    check: Callable[[Path, list[BaseProcess]], None],
) -> None:
    """Start ranks, wait until all but a stopped one have ended, and look at what they leave.

    Args:
        folder: for run folders.
        world_size: number of ranks.
        fault: told the rank, does what befalls it.
        check: told the run folder and the ranks, asserts what must be so.
    """
    for seconds in PATIENCE_SECONDS:
        run = folder / f"patience {seconds:g} s"
        run.mkdir()
        try:
            check(run, play_once(run, world_size, fault, seconds))
            return
        except (AssertionError, LookupError, OSError, ValueError):
            if seconds == PATIENCE_SECONDS[-1]:
                raise


def play_once(
    run: Path, world_size: int, fault: Callable[[int], None], timeout_seconds: float
) -> list[BaseProcess]:
    """Once, with so much patience."""
    port, barrier = free_port(), FORK.Barrier(world_size)
    ranks = [
        FORK.Process(
            target=one_rank, args=(rank, world_size, run, timeout_seconds, port, fault, barrier)
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while any(process.is_alive() and not is_stopped(process) for process in ranks):
            assert time.monotonic() < deadline, "a rank hangs"
            time.sleep(0.05)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return list(ranks)


def is_stopped(process: BaseProcess) -> bool:
    try:
        return psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def reason(run: Path) -> str:
    """The last line, which stands in train.log, in a file of its own and on one rank's stderr."""
    (line,) = [
        text.splitlines()[-1]
        for path in run.glob("said-*.txt")
        if (text := path.read_text()).startswith("rank 0: ")
    ]
    assert (run / "stalls/start-1/reason.txt").read_text().splitlines()[-1] == line
    assert (run / "train.log").read_text().splitlines()[-1].endswith(f" ERROR {line}")
    assert "--resume auto" in line
    return line


@pytest.mark.slow
def test_a_single_process_that_hangs_ends_with_its_stacks(tmp_path: Path) -> None:
    def hang(rank: int) -> None:
        time.sleep(LIMIT_SECONDS)

    def check(run: Path, ranks: list[BaseProcess]) -> None:
        assert ranks[0].exitcode == EXIT_STALLED
        assert "the run stalls at the data of step 3, in hang (test_stalls.py:" in reason(run)
        stacks = (run / "stalls/start-1/rank-0.txt").read_text()
        assert "thread MainThread" in stacks and "in one_rank" in stacks

    play(tmp_path, 1, hang, check)


def test_a_rank_that_sleeps_is_named_and_every_rank_leaves_its_stacks(tmp_path: Path) -> None:
    def sleep(rank: int) -> None:
        time.sleep(LIMIT_SECONDS if rank == 1 else 0)

    def check(run: Path, ranks: list[BaseProcess]) -> None:
        assert [process.exitcode for process in ranks] == [EXIT_STALLED] * 3
        said = reason(run)
        assert "rank 1 stalls at the data of step 3, in sleep (test_stalls.py:" in said
        assert "while others have come to the count of step 3" in said
        assert "rank 0 stalls" not in said and "rank 2 stalls" not in said
        stacks = [(run / f"stalls/start-1/rank-{rank}.txt").read_text() for rank in range(3)]
        assert "in sleep" in stacks[1] and "in sleep" not in stacks[0] + stacks[2]

    play(tmp_path, 3, sleep, check)


@pytest.mark.parametrize("struck", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_is_stopped_is_named_whether_it_holds_the_store_or_not(
    tmp_path: Path, struck: int
) -> None:
    def stop(rank: int) -> None:
        if rank == struck:
            os.kill(os.getpid(), signal.SIGSTOP)

    def check(run: Path, ranks: list[BaseProcess]) -> None:
        assert ranks[1 - struck].exitcode == EXIT_STALLED
        said = reason(run) if struck else (run / "train.log").read_text()
        if not struck:
            assert "and with it the store of the ranks; stacks: " in said
        who = f"(process {ranks[struck].pid} on {socket.gethostname()} is stopped)"
        silent = f"rank {struck} stalls: it does not answer any more {who}, last heard of at "
        assert silent in said
        assert (run / f"stalls/start-1/rank-{1 - struck}.txt").exists()

    play(tmp_path, 2, stop, check)


@pytest.mark.slow
def test_a_rank_that_works_on_and_one_that_may_take_long_are_left_alone(tmp_path: Path) -> None:
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    watch = StallWatch(ranks, 0.3, tmp_path, 1)
    watch.start()
    time.sleep(0.5)  # before the first step
    for step in range(10):
        watch.at(f"step {step}", is_slow=False)
        time.sleep(0.05)
    watch.at("the save", is_slow=True)
    time.sleep(0.5)
    watch.close()
    assert not list(tmp_path.iterdir())


POST = Post(
    beat=9,
    moves=40,
    place=(5, 2),
    moment="step 5",
    is_slow=False,
    host="h",
    pid=1,
    stack="sum (a.py:1)",
)


def test_a_rank_outside_a_collective_is_named_where_the_others_wait_in_one() -> None:
    waiting = replace(POST, is_collective=True)
    said = find_stalled({0: waiting, 1: POST, 2: waiting}, set(), "h")
    assert said == "rank 1 stalls at step 5, in sum (a.py:1), while others wait for it"


def test_moments_of_the_first_rank_alone_do_not_make_the_others_late() -> None:
    waiting = replace(POST, is_collective=True)
    said = find_stalled({0: replace(POST, moves=99), 1: waiting}, set(), "h")
    assert said.startswith("rank 0 stalls at step 5")
    early = replace(waiting, place=(5, 1), moment="the data of step 5")
    said = find_stalled({0: waiting, 1: replace(early, moves=99)}, set(), "h")
    assert said.startswith("rank 1 stalls at the data of step 5")


def test_nobody_is_accused_where_all_wait_alike() -> None:
    waiting = replace(POST, is_collective=True)
    said = find_stalled({0: waiting, 1: waiting}, set(), "h")
    assert said.startswith("no rank stands out, all are at step 5")


def test_a_rank_that_was_never_heard_of_is_named() -> None:
    assert "rank 1 stalls: it has never been heard of" in find_stalled({0: POST}, {1}, "h")


def test_waiting_for_other_ranks_is_told_from_work_by_the_stack() -> None:
    module = sys.modules[dist.all_reduce.__module__].__file__
    stack = [(str(module), 1, "all_reduce"), ("/x/step.py", 2, "count_step")]
    assert describe_stack(stack)[1] and not describe_stack(stack[1:])[1]


def test_wrappers_of_libraries_are_left_out_of_what_is_said_of_a_stack() -> None:
    library = "/lib/site-packages/torch/x.py"
    stack = [(library, 1, "wait"), (library, 2, "wrapper"), ("/x/step.py", 3, "count_step")]
    assert describe_stack(stack)[0] == "wait (x.py:1) < count_step (step.py:3)"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stall_timeout": SLOW_SECONDS + 1}, "--stall_timeout"),
        ({"stall_timeout": -1}, "--stall_timeout"),
        ({"data_timeout": -1.0}, "--data_timeout"),
        ({"stall_timeout": 60, "data_timeout": 30.0}, "--data_timeout 30 with --stall_timeout 60"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        StallConfig(**values)


@pytest.mark.parametrize("timeout", [0.0, 60.0, SLOW_SECONDS])
def test_data_workers_are_started_anew_before_the_run_counts_as_stalled(timeout: float) -> None:
    assert not timeout or 3 * StallConfig(stall_timeout=timeout).data_seconds < timeout
