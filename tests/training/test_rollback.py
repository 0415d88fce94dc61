"""Where a run goes back to, and when going back does not help."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from meloformer.errors import TrainingError
from meloformer.training.checkpoint import (
    MANIFEST_NAME,
    TrainingState,
    begin_checkpoint,
    finish_checkpoint,
    step_folder,
)
from meloformer.training.loop import train
from meloformer.training.ranks import start_ranks
from meloformer.training.rollback import dropped_steps, last_good
from meloformer.training.step import Progress, StepCounts
from tests.training.bad_steps_worker import SAVE_EVERY, corrupt, open_session
from tests.training.test_checkpoint import STATE

COUNTS = StepCounts(
    targets=10, tokens=12, positions=16, summaries=2, wait_seconds=0.0, rank_seconds=(0.0,)
)


def save(run: Path, step: int, skipped_in_a_row: int) -> TrainingState:
    state = replace(STATE, step=step, setbacks={"skipped_in_a_row": skipped_in_a_row})
    folder = begin_checkpoint(run, step)
    state.save(folder)
    finish_checkpoint(folder, keep_last=0)
    return state


def test_the_last_good_checkpoint_is_whole_and_was_not_written_amid_dropped_steps(
    tmp_path: Path,
) -> None:
    assert last_good(tmp_path) is None
    good = save(tmp_path, 5, 0)
    save(tmp_path, 10, 0)
    save(tmp_path, 15, 2)
    (step_folder(tmp_path, 10) / MANIFEST_NAME).unlink()
    assert last_good(tmp_path) == (step_folder(tmp_path, 5), good)
    shutil.rmtree(step_folder(tmp_path, 5))
    assert last_good(tmp_path) is None


def test_a_second_rollback_remembers_the_steps_that_were_dropped_before_the_first() -> None:
    dropped = {"why": "loss is not finite", "batches": []}
    early = {"step": 4, **dropped}
    lines = [
        {"step": 4, "dropped": None, "rolled_back": {"from_step": 6, "dropped": [early]}},
        {"step": 5, "dropped": dropped, "rolled_back": None},
        {"step": 6, "dropped": None, "rolled_back": None},
    ]
    assert dropped_steps(lines) == [early, {"step": 5, **dropped}]


def test_what_went_wrong_stays_counted_over_rollback_and_resume() -> None:
    progress = Progress().after(COUNTS)
    checkpoint = replace(STATE, step=1, tokens_seen=10, skipped_steps=0, setbacks={})
    for _ in range(3):
        progress = progress.after(COUNTS, is_dropped=True)
    assert (progress.step, progress.skipped_in_a_row) == (4, 3)
    back = progress.back_to(checkpoint)
    assert (back.step, back.tokens_seen, back.skipped, back.skipped_in_a_row) == (1, 10, 3, 0)
    assert (back.rollbacks, back.rolled_back_from) == (1, 4)
    saved = replace(
        STATE,
        step=back.step,
        tokens_seen=back.tokens_seen,
        skipped_steps=back.skipped,
        setbacks=back.setbacks,
    )
    assert Progress.of(saved) == back


def test_a_run_that_comes_no_further_after_going_back_ends(
    chorale_shards: Path, tmp_path: Path
) -> None:
    session = open_session(chorale_shards, tmp_path / "run", start_ranks("cpu"), 9)
    corrupt(session, {batch: math.nan for batch in range(SAVE_EVERY + 1, 99)})
    with pytest.raises(TrainingError, match=r"last is 5, and the run has .* once, after step 5"):
        train(session)
    session.close()
