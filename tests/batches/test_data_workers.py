"""Workers that die or hang: the batches are those of workers that nothing befell."""

import glob
import logging
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from meloformer.batches import data_workers
from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator
from meloformer.batches.data_workers import MAX_LOSSES, load, process_state
from meloformer.batches.plan import PlanConfig, iterate_steps
from meloformer.batches.share import MicroBatchSpec, micro_batches
from meloformer.errors import BatchError
from meloformer.shards.reader import ShardFolder

# Long for a worker that only shares a busy machine, short for one that never answers.
PATIENCE_SECONDS, TIMEOUT_SECONDS = 240.0, 0.5
SEEN = {os.getpid()}


class Fatal:
    """Kills its own worker at one spec; echoes the others."""

    def __init__(self, index, number: int, how: int) -> None:
        self.index, self.number, self.how = index, number, how

    def __call__(self, spec):
        if spec.rows[0][0].piece == self.number:
            os.kill(os.getpid(), self.how)
        return spec


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_workers, "_POLL_SECONDS", 0.2)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[data_workers._Workers]:
    """The workers of each start, as they come."""
    started: list[data_workers._Workers] = []

    class Noted(data_workers._Workers):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            started.append(self)

    monkeypatch.setattr(data_workers, "_Workers", Noted)
    return started


@pytest.fixture(autouse=True)
def nothing_left_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    get_temp_dir()  # of this process, which keeps it
    tmp_path_factory.getbasetemp()  # pytest's own is made outside too
    # A short path, for sockets, where no other process of this machine makes files.
    own = tempfile.mkdtemp()
    monkeypatch.setattr(tempfile, "tempdir", own)

    def held() -> set[str]:
        workers()
        shared = [path for pid in SEEN for path in glob.glob(f"/dev/shm/torch_{pid}_*")]
        return {*shared, *glob.glob(f"{own}/pymp-*")}

    # Where shards were made first, the server that forked their workers lives on.
    before, children = held(), set(psutil.Process().children())
    yield
    # What is killed needs a moment of a machine to end.
    wait_until(lambda: not multiprocessing.active_children())
    assert set(psutil.Process().children()) <= children  # no zombie either
    assert held() <= before
    os.rmdir(own)


@pytest.fixture(scope="module")
def specs_and_collator(chorale_shards: Path) -> tuple[list[MicroBatchSpec], Collator]:
    index = ShardFolder.open(chorale_shards).split("train")
    steps = iterate_steps(index, PlanConfig(max_seq_len=512, global_batch=4))
    specs = [spec for step in steps for spec in micro_batches(step, 0, 1, 1)]
    return specs[:24], Collator(index=index)


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers() -> list[int]:
    pids = sorted(process.pid for process in multiprocessing.active_children() if process.pid)
    SEEN.update(pids)
    return pids


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.ids_BT, other.ids_BT)
        assert torch.equal(one.targets_BT, other.targets_BT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_batches_are_the_same_when_a_worker_is_struck_in_the_middle(
    specs_and_collator,
    how: signal.Signals,
    starts: list[data_workers._Workers],
    caplog: pytest.LogCaptureFixture,
) -> None:
    specs, collator = specs_and_collator
    expected = list(load(specs, collator, 0, False))
    found, struck = [], 0
    with caplog.at_level(logging.WARNING):
        for number, batch in enumerate(load(specs, collator, 2, False, PATIENCE_SECONDS)):
            found.append(batch)
            if number == 5:
                struck = workers()[0]
                os.kill(struck, how)
                if how == signal.SIGSTOP:
                    wait_until(lambda pid=struck: process_state(pid) == "is stopped")
                    starts[0]._timeout_seconds = TIMEOUT_SECONDS
    assert len(starts) == 2
    assert_same(found, expected)
    line = next(line for line in caplog.messages if str(struck) in line)
    said = "was ended by SIGKILL" if how == signal.SIGKILL else "is stopped"
    assert f"(pid {struck}) {said}, " in line
    assert line.endswith("all 2 data workers are started anew at the batch that was due")


class Leaving:
    """Dies once between making shared memory and taking its name away, as any worker may."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, spec):
        if not self.mark.exists():
            Path(f"/dev/shm/torch_{os.getpid()}_1_0").write_bytes(bytes(8))
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return spec


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="shared memory has no names here")
def test_memory_that_a_worker_leaves_is_given_back_and_that_of_others_is_not(
    simulated: Callable, tmp_path: Path
) -> None:
    index = simulated(1, 8, 1, 6.0, 4.0)
    steps = iterate_steps(index, PlanConfig(max_seq_len=64, global_batch=2))
    specs = [spec for step in steps for spec in micro_batches(step, 0, 1, 1)]
    collator = Leaving(tmp_path / "died")
    collator.index = index  # type: ignore[attr-defined]
    other = Path(f"/dev/shm/torch_{os.getpid()}_other_0")
    other.write_bytes(bytes(8))
    try:
        assert list(load(specs, collator, 1, False)) == specs  # type: ignore[arg-type]
        assert other.exists()
    finally:
        other.unlink()
    assert not glob.glob(f"/dev/shm/torch_{collator.mark.read_text()}_*")


def test_a_worker_that_dies_does_not_raise_in_the_middle_of_other_work(specs_and_collator) -> None:
    specs, collator = specs_and_collator
    batches = load(specs, collator, 2, False)
    next(batches)
    os.kill(workers()[1], signal.SIGKILL)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        sum(range(1000))  # where a handler of the signal would raise
    assert len(list(batches)) == len(specs) - 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (signal.SIGKILL, r"was ended by SIGKILL, over a batch of piece .*fewer --num_workers"),
        pytest.param(
            signal.SIGSTOP,
            r"\(--data_timeout\): data worker . \(pid \d+\) is stopped, over a batch",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_workers_that_are_lost_time_and_again_become_an_error_that_names_the_piece(
    simulated: Callable, how: signal.Signals, words: str
) -> None:
    index = simulated(1, 60, 1, 6.0, 4.0)
    steps = iterate_steps(index, PlanConfig(max_seq_len=64, global_batch=2))
    specs = [spec for step in steps for spec in micro_batches(step, 0, 1, 1)]
    fatal = Fatal(index, specs[7].rows[0][0].piece, how)
    patience = PATIENCE_SECONDS if how == signal.SIGKILL else 1.5
    batches = load(specs, fatal, 2, False, patience)  # type: ignore[arg-type]
    found: list = []
    with pytest.raises(BatchError, match=words) as caught:
        found.extend(batches)
    assert found == specs[: len(found)] and len(found) <= 7
    assert f"lost {MAX_LOSSES} times in a row" in str(caught.value)
    assert "--resume auto" in str(caught.value)


@pytest.mark.slow
def test_a_stream_that_is_left_ends_a_worker_that_does_not_answer(specs_and_collator) -> None:
    specs, collator = specs_and_collator
    batches = load(specs, collator, 2, False)
    next(batches)
    os.kill(workers()[0], signal.SIGSTOP)
    batches.close()  # type: ignore[attr-defined]
    assert not workers()


def test_the_state_of_a_process_is_said_in_words() -> None:
    assert process_state(os.getpid()) == "is running"
    with psutil.Popen(["sleep", "3600"]) as process:
        process.suspend()
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        assert process_state(process.pid) == "is stopped"
        process.kill()
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert process_state(process.pid) == "has ended"
    assert process_state(process.pid) == "has ended"
