"""A run that is told to stop: when it ends, what it leaves, and what the signals do not reach."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from meloformer.training import stopping
from meloformer.training.checkpoint import check_files, step_folders
from meloformer.training.graphs import Shapes, warm_up
from meloformer.training.processes import Processes
from meloformer.training.ranks import Ranks
from meloformer.training.stopping import STATUS_VARIABLE, Stopping
from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS
from tests.training.test_processes import WAITS, post_of

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def asked_by(number: signal.Signals | None) -> Callable[[], signal.Signals | None]:
    return lambda: number


def test_ranks_agree_by_a_sum_and_one_signal_counts() -> None:
    words = [Stopping(ALONE, asked_by(n)).own_word() for n in (None, signal.SIGUSR1, None)]
    found = Stopping(ALONE, asked_by(None))
    assert not found.is_agreed and found.exit_status == 0
    found.agree([sum(said) for said in zip(*words, strict=True)])
    assert found.is_agreed and found.name == "SIGUSR1"
    found.agree(Stopping(ALONE, asked_by(signal.SIGTERM)).own_word())
    assert found.name == "SIGUSR1", "once agreed, it stays so"


@pytest.mark.parametrize(
    ("number", "wanted", "status"),
    [
        (signal.SIGTERM, {}, 0),
        (signal.SIGUSR1, {STATUS_VARIABLE: "75"}, 75),
        (signal.SIGINT, {}, 130),
    ],
)
def test_the_status_after_a_stop(
    number: signal.Signals, wanted: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    found = Stopping(ALONE, asked_by(number))
    assert found.ask() and found.exit_status == status


class _Looked(Processes):
    """Counts how often somebody has looked whether processes live."""

    num_looks = 0

    def ended(self, ranks: Iterable[int]) -> list[int]:
        self.num_looks += 1
        return super().ended(ranks)


class _Stores:
    """Two ranks in one process, as far as the store goes; an answer may take as long as it wants.

    Args:
        monkeypatch: of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = dist.HashStore()
        self.deserted: list[tuple[list[int], str]] = []
        self.processes = Processes(self.store)
        self.heard: list[signal.Signals] = []
        monkeypatch.setattr(stopping, "ask_to_stop", self.heard.append)
        monkeypatch.setattr(
            stopping, "_desert", lambda gone, why: self.deserted.append((list(gone), why))
        )
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(stopping, "_POLL_SECONDS", 0.02)
        self.wait_for_answers(TIME_LIMIT_SECONDS)

    def wait_for_answers(self, seconds: float) -> None:
        self._monkeypatch.setattr(stopping, "ANSWER_SECONDS", seconds)

    def start(self, rank: int, number: signal.Signals | None) -> Stopping:
        found = Stopping(ALONE, asked_by(number))
        found._ranks = Ranks(rank=rank, local_rank=rank, world_size=2, device=ALONE.device)
        found._processes = _Looked(self.store)
        found._thread = threading.Thread(
            target=found._spread, args=(self.store, found._processes), daemon=True
        )
        found._thread.start()
        return found

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIME_LIMIT_SECONDS
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def let_look(self, rank: Stopping) -> None:
        """Until it has looked at the others, and has drawn its conclusions, if it lives."""
        assert isinstance(rank._processes, _Looked) and rank._thread
        looked, until = rank._processes, rank._processes.num_looks + 2
        self.wait_until(lambda: looked.num_looks >= until or self.deserted != [])


def test_the_word_of_one_rank_reaches_all_and_those_that_live_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stores = _Stores(monkeypatch)
    found = [stores.start(0, None), stores.start(1, signal.SIGUSR1)]
    stores.wait_until(lambda: stores.store.check(["heard/0", "heard/1"]))
    stores.wait_for_answers(0.0)
    for one in found:
        stores.let_look(one)
    stores.wait_for_answers(TIME_LIMIT_SECONDS)
    for one in found:
        one.close()
    assert stores.heard == [signal.SIGUSR1] * 2 and not stores.deserted


def test_a_rank_that_is_told_to_stop_does_not_wait_for_a_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stores = _Stores(monkeypatch)
    stores.wait_for_answers(0.1)
    found = stores.start(1, signal.SIGTERM)
    assert found._thread
    found._thread.join(TIME_LIMIT_SECONDS)
    ((gone, why),) = stores.deserted
    assert gone == [0] and "no answer" in why


def test_a_rank_that_was_killed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = _Stores(monkeypatch)
    with subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as other:
        stores.store.set("meloformer/processes/0", post_of(other.pid))
        found = stores.start(1, signal.SIGTERM)
        assert found._thread
        found._thread.join(0.3)
        assert found._thread.is_alive() and not stores.deserted, "it lives"
        other.kill()
        found._thread.join(TIME_LIMIT_SECONDS)
    assert stores.deserted == [([0], "found ended")]


def test_a_rank_that_has_left_is_missed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = _Stores(monkeypatch)
    first = stores.start(0, None)
    stores.store.set("heard/0", "")
    with subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as other:
        stores.store.set("meloformer/processes/0", post_of(other.pid))
        first.close()
        other.kill()
    stores.wait_for_answers(0.0)
    second = stores.start(1, signal.SIGTERM)
    stores.let_look(second)
    stores.wait_for_answers(TIME_LIMIT_SECONDS)
    second.close()
    assert not stores.deserted


def test_a_rank_that_fails_leaves_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = _Stores(monkeypatch)
    found = stores.start(0, None)
    stores.processes.come(0)
    before = stores.store.get("meloformer/processes/0")
    try:
        raise RuntimeError
    except RuntimeError:
        found.close()
    assert stores.store.get("meloformer/processes/0") == before


def test_a_rank_that_has_ended_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = _Stores(monkeypatch)
    found = stores.start(1, signal.SIGTERM)
    found.close()
    assert found._thread and not found._thread.is_alive() and not stores.deserted


def test_a_stop_between_two_shapes_leaves_out_the_rest_of_the_warm_up() -> None:
    class Nobody:
        ranks = ALONE

    asked = Stopping(ALONE, asked_by(signal.SIGTERM))
    shapes = Shapes(train=(None,), score=(None,))  # type: ignore[arg-type]  # never looked at
    warm_up(Nobody(), None, shapes, None, is_over=asked.ask)  # type: ignore[arg-type]
    assert asked.is_agreed


@contextmanager
def train(shards: Path, output: Path, *more: str) -> Iterator[subprocess.Popen]:
    """launch/train.py on one rank, in a session of its own."""
    flags = (
        f"--data {shards} --output {output} --model_size tiny --max_seq_len 256 --batch_size 1 "
        "--gradient_accumulation_steps 1 --num_workers 1 --validation_rows 64 --save_every 0 "
        "--validate_every 0 --max_steps 1000000 --samples 0 --device cpu"
    )
    with subprocess.Popen(
        [sys.executable, "launch/train.py", *flags.split(), *more],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def steps(output: Path) -> list[int]:
    path = output / "metrics.jsonl"
    # The last line may be half written.
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def wait_for(is_so: Callable[[], object], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_to_a_run_and_its_data_worker_saves_the_step_and_says_so_last(
    chorale_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with train(chorale_shards, output) as process:
        wait_for(lambda: len(steps(output)) >= 2, process)
        for _ in range(2):  # again, while it ends
            os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
    assert process.returncode == 0, said
    done = steps(output)[-1]
    last = f"saved step {done}, stopped by SIGTERM"
    assert said.splitlines()[-1] == last
    assert (output / "train.log").read_text().splitlines()[-1].endswith(f" INFO {last}")
    assert [folder.name for folder in step_folders(output)] == [f"step-{done}"]
    check_files(step_folders(output)[0])
    assert not (output / "model").exists()


@pytest.mark.slow
def test_a_stop_in_a_validation_does_not_wait_for_the_rest_and_saves_once(
    chorale_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    more = ("--validate_every", "2", "--save_every", "2", "--num_workers", "0")
    with train(chorale_shards, output, *more) as process:
        wait_for(lambda: 2 in steps(output), process)
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
    assert process.returncode == 0, said
    *_, left_out, saved, last = said.splitlines()
    assert left_out == "the validation after step 2 is left out: the run stops"
    assert saved.startswith("saved ") and last == "saved step 2, stopped by SIGUSR1"
    assert [folder.name for folder in step_folders(output)] == ["step-2"]


@pytest.mark.slow
def test_a_stop_before_the_first_step_of_a_resumed_run_saves_nothing(
    chorale_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with train(chorale_shards, output) as process:
        wait_for(lambda: steps(output), process)
        process.terminate()
        assert process.wait(TIME_LIMIT_SECONDS) == 0
    done = steps(output)[-1]
    with train(chorale_shards, output, "--resume", "auto") as process:
        log = output / "train.log"
        wait_for(lambda: f"goes on after step {done}" in log.read_text(), process)
        process.terminate()
        said, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
    assert process.returncode == 0, said
    found = steps(output)[-1]
    assert said.splitlines()[-1] in (
        f"stopped by SIGTERM before step {done + 1}, nothing to save",
        f"saved step {found}, stopped by SIGTERM",  # the signal came a moment after the first
    )
