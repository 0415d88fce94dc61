"""Saving beside training: what it waits for, what it says, and what it does when it cannot."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from meloformer.errors import CheckpointError
from meloformer.model.tensor_file import FileSum
from meloformer.model.weights import load_weights
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training import background
from meloformer.training.background import BackgroundSaver, SaveOutcome
from meloformer.training.checkpoint import MODEL_NAME, PARTS_NAME, check_files, step_folders
from meloformer.training.engine import Engine
from meloformer.training.ranks import Ranks, start_ranks
from meloformer.training.saving import Checkpoints
from tests.layouts import tiny_config
from tests.training.checkpoint_worker import build_engine, train
from tests.training.full_disk import largest_file
from tests.training.launching import TIME_LIMIT_SECONDS
from tests.training.test_checkpoint import STATE
from tests.training.test_processes import WAITS, post_of

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A saver that may have to wait for a machine that stands still."""
    for name in ("CLOSING_SECONDS", "ABSENT_SECONDS"):
        monkeypatch.setattr(background, name, TIME_LIMIT_SECONDS)


class Recorder:
    """A saver whose writing waits to be let go, and what it has told."""

    def __init__(self, *, is_background: bool = True) -> None:
        self.told: list[SaveOutcome] = []
        self.go_on = threading.Event()
        self.sealed: list[int] = []
        self.abandoned: list[int] = []
        self.saver = BackgroundSaver(ALONE, is_background=is_background, tell=self.told.append)

    def save(self, step: int, error: Exception | None = None) -> None:
        def write() -> dict[str, FileSum]:
            assert self.go_on.wait(TIME_LIMIT_SECONDS)
            if error:
                raise error
            return {}

        def seal(sums: dict[str, FileSum]) -> Path:
            self.sealed.append(step)
            return Path("sealed")

        self.saver.settle()
        self.saver.start(
            step, Path(f"step-{step}"), write, seal, lambda: self.abandoned.append(step)
        )


def test_training_goes_on_while_a_save_is_written_and_hears_of_it_afterwards() -> None:
    recorder = Recorder()
    recorder.save(3)
    recorder.saver.poll()
    assert not recorder.told and not recorder.sealed
    recorder.go_on.set()
    while not recorder.told:
        time.sleep(0.01)
        recorder.saver.poll()
    assert recorder.sealed == [3]
    assert [outcome.line() for outcome in recorder.told] == ["saved step-3"]
    recorder.saver.poll()
    recorder.saver.settle()
    assert len(recorder.told) == 1, "once"


def test_the_second_save_waits_for_the_first() -> None:
    recorder = Recorder()
    recorder.save(3)
    threading.Timer(0.3, recorder.go_on.set).start()
    recorder.save(6)
    assert recorder.sealed[:1] == [3] and recorder.told[0].step == 3
    recorder.saver.finish()
    assert [outcome.step for outcome in recorder.told] == [3, 6] == recorder.sealed


def test_without_a_thread_a_save_is_there_when_the_call_returns() -> None:
    recorder = Recorder(is_background=False)
    recorder.go_on.set()
    recorder.save(3)
    assert recorder.sealed == [3] and recorder.told[0].step == 3


@pytest.mark.parametrize("is_background", [True, False])
def test_one_failure_is_told_and_survived_and_two_in_a_row_end_the_run(
    is_background: bool,
) -> None:
    recorder = Recorder(is_background=is_background)
    recorder.go_on.set()
    full = OSError(28, "No space left on device")
    recorder.save(3, full)
    recorder.save(6)
    recorder.save(9, full)
    recorder.saver.settle()
    assert recorder.abandoned == [3, 9] and recorder.sealed == [6]
    line = recorder.told[0].line()
    assert line.startswith("error: the checkpoint of step 3 was not saved: No space left on device")
    assert "make room" in line
    with pytest.raises(CheckpointError, match=r"2 saves in a row failed.*--resume auto"):
        recorder.save(12, full)
        recorder.saver.settle()


def test_a_run_whose_last_save_failed_does_not_end_well() -> None:
    recorder = Recorder()
    recorder.go_on.set()
    recorder.save(3, ValueError("whatever"))
    with pytest.raises(CheckpointError, match="the last save of the run failed: whatever"):
        recorder.saver.finish()


def test_a_save_that_does_not_end_ends_the_run_and_the_rank_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder()
    recorder.go_on.set()
    recorder.save(3)
    recorder.saver.settle()
    recorder.go_on.clear()
    recorder.save(6)
    monkeypatch.setattr(background, "WRITE_LIMIT", timedelta(seconds=0.3))
    with pytest.raises(CheckpointError, match=r"within 0\.005 minutes on rank 0; look at the disk"):
        recorder.saver.settle()
    recorder.go_on.set()
    recorder.saver.close()
    assert recorder.sealed == [3, 6] and recorder.told[-1].step == 6


def test_nothing_of_a_save_is_left_in_the_store_that_another_saver_could_take_for_its_own() -> None:
    store = dist.HashStore()
    saver = BackgroundSaver(ALONE, is_background=True, tell=lambda outcome: None, store=store)
    saver.start(3, Path("step-3"), dict, lambda sums: Path("sealed"), lambda: None)
    saver.settle()
    assert store.num_keys() == 0


def test_a_run_that_ends_in_an_error_waits_for_its_save() -> None:
    recorder = Recorder()
    recorder.save(3)
    threading.Timer(0.3, recorder.go_on.set).start()
    recorder.saver.close()
    assert recorder.sealed == [3] and [outcome.step for outcome in recorder.told] == [3]


def two_ranks(errors: tuple[str, str], delays: tuple[float, float]) -> tuple[list, list[int]]:
    """What two ranks hear of one save, and which steps were sealed."""
    store = dist.HashStore()
    sealed: list[int] = []
    savers, told = [], []
    for rank in range(2):
        ranks = Ranks(rank=rank, local_rank=rank, world_size=2, device=torch.device("cpu"))
        heard: list[SaveOutcome] = []
        told.append(heard)
        savers.append(BackgroundSaver(ranks, is_background=True, tell=heard.append, store=store))

    def write(rank: int) -> dict[str, FileSum]:
        time.sleep(delays[rank])
        if errors[rank]:
            raise ValueError(errors[rank])
        return {f"parts/{rank}": FileSum(rank, "0")}

    def seal(sums: dict[str, FileSum]) -> Path:
        assert sums == {"parts/0": FileSum(0, "0"), "parts/1": FileSum(1, "0")}
        sealed.append(3)
        return Path("sealed")

    for rank, saver in enumerate(savers):
        saver.start(3, Path("step-3"), partial(write, rank), seal, lambda: None)
    for saver in savers:
        saver.close()
    return [[outcome.error for outcome in heard] for heard in told], sealed


@pytest.mark.parametrize("delays", [(0.0, 0.3), (0.3, 0.0)])
def test_the_first_rank_seals_when_all_have_written_and_all_hear_of_it(
    delays: tuple[float, float],
) -> None:
    assert two_ranks(("", ""), delays) == ([[""], [""]], [3])


def test_what_fails_on_one_rank_is_known_on_all_and_nothing_is_sealed() -> None:
    assert two_ranks(("", "no room"), (0.0, 0.1)) == ([["rank 1: no room"]] * 2, [])
    assert two_ranks(("no room", ""), (0.1, 0.0)) == ([["no room"]] * 2, [])


def test_a_run_that_ends_does_not_wait_for_a_rank_that_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "ABSENT_SECONDS", 0.2)
    ranks = Ranks(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
    told: list[SaveOutcome] = []
    saver = BackgroundSaver(ranks, is_background=True, tell=told.append, store=dist.HashStore())
    saver.start(3, Path("step-3"), dict, lambda sums: Path("sealed"), lambda: None)
    saver.close()
    assert [outcome.error for outcome in told] == ["rank 1 has not written its part"]


def test_a_save_does_not_wait_for_a_rank_that_was_killed() -> None:
    store = dist.HashStore()
    ranks = Ranks(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
    told: list[SaveOutcome] = []
    saver = BackgroundSaver(ranks, is_background=True, tell=told.append, store=store)
    with subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as other:
        store.set("meloformer/processes/1", post_of(other.pid))
        saver.start(3, Path("step-3"), dict, lambda sums: Path("sealed"), lambda: None)
        assert saver._thread
        saver._thread.join(0.3)
        assert saver._thread.is_alive(), "it may still write"
        other.kill()
        saver._thread.join(TIME_LIMIT_SECONDS)
        assert not saver._thread.is_alive()
    saver.close()
    assert [outcome.error for outcome in told] == ["rank 1 has not written its part"]


def test_what_a_rank_wrote_before_it_was_killed_is_sealed() -> None:
    store = dist.HashStore()
    ranks = Ranks(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
    told: list[SaveOutcome] = []
    saver = BackgroundSaver(ranks, is_background=True, tell=told.append, store=store)
    with subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE) as other:
        store.set("meloformer/processes/1", post_of(other.pid))
        other.kill()
    store.set("1/1", json.dumps({"error": "", "sums": {}}))
    saver.start(3, Path("step-3"), dict, lambda sums: Path("sealed"), lambda: None)
    saver.close()
    assert [outcome.error for outcome in told] == [""]


def checkpoints_of(engine: Engine, run: Path, told: list[SaveOutcome]) -> Checkpoints:
    return Checkpoints(
        engine,
        run,
        tiny_config(),
        keep_last=2,
        keep_every=0,
        is_background=True,
        tell=told.append,
    )


def test_a_disk_that_is_full_costs_one_checkpoint_and_leaves_the_last_good_one(
    tmp_path: Path,
) -> None:
    engine = build_engine(start_ranks("cpu"), "zero2", is_bf16=True)
    told: list[SaveOutcome] = []
    saver = checkpoints_of(engine, tmp_path, told)
    state = replace(STATE, world_size=1, tokenizer_fingerprint=fingerprint())

    def save(step: int) -> None:
        saver.save(replace(state, step=step))
        saver.settle()

    save(1)
    train(engine, 1)
    with largest_file(10_000):
        save(2)
    assert "File too large" in told[-1].error
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"], "no litter"
    train(engine, 1)
    expected = engine.full_weights()
    # What is computed while a save is under way does not enter it.
    saver.save(replace(state, step=3))
    train(engine, 1)
    saver.finish()
    assert [path.name for path in step_folders(tmp_path)] == ["step-1", "step-3"]
    check_files(step_folders(tmp_path)[-1])
    found = load_weights(step_folders(tmp_path)[-1] / MODEL_NAME)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    engine.load(step_folders(tmp_path)[-1] / PARTS_NAME)
    again = engine.full_weights()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_a_folder_that_cannot_be_made_is_a_failed_save_and_no_crash(tmp_path: Path) -> None:
    engine = build_engine(start_ranks("cpu"), "zero2", is_bf16=False)
    told: list[SaveOutcome] = []
    saver = checkpoints_of(engine, tmp_path, told)
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    saver.save(STATE)
    with pytest.raises(CheckpointError, match="the last save of the run failed"):
        saver.finish()
    assert told[0].error
