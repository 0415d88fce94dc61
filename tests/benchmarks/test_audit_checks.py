import json
import math
from pathlib import Path

import numpy as np
import pytest

from meloformer.benchmarks.audit import check_untouched, snapshot
from meloformer.benchmarks.audit_checks import allowed_copies, lets_all_through
from meloformer.benchmarks.audit_replays import begun_at, find_stretch, ranks_here, widest_gap
from meloformer.benchmarks.replays import train_flags, words_of
from meloformer.command_line import parse_flags
from meloformer.errors import CheckpointError
from meloformer.evaluation.copied_bars import CopyCount
from meloformer.training.checkpoint import MANIFEST_NAME, STATE_NAME, step_folder, sum_files
from meloformer.training.config import TrainConfig, resolve
from meloformer.training.run_folder import Run


def count(found: list[int], *, longest_run: int = 1) -> CopyCount:
    bars = np.full(len(found), 10)
    return CopyCount(num_bars=bars, num_found=np.array(found), longest_run=longest_run)


def test_the_limit_of_copied_bars_lies_above_held_out_music_by_margin_and_error() -> None:
    assert allowed_copies(count([1] * 50), num_pieces=16) == pytest.approx((0.15, 4))
    share, run = allowed_copies(count([0, 2] * 25, longest_run=5), num_pieces=16)
    error = np.std([0, 0.2] * 25, ddof=1) * math.sqrt(1 / 50 + 1 / 16)
    assert (share, run) == (pytest.approx(0.15 + 3 * error), 10)
    # More pieces, a narrower limit; few of them still let a plain copy through nowhere.
    assert allowed_copies(count([0, 2] * 25), num_pieces=64)[0] < share < 0.5
    assert allowed_copies(count([1, 0]), num_pieces=1)[0] < 1


@pytest.mark.parametrize(
    ("base", "is_blind"),
    [
        (count([10] * 5, longest_run=16), True),
        (count([10] * 5, longest_run=7), False),
        (count([1] * 5, longest_run=16), False),
    ],
)
def test_limits_that_whole_copies_keep_to_are_told_from_those_that_they_do_not(
    base: CopyCount, is_blind: bool
) -> None:
    limits = allowed_copies(base, num_pieces=16)
    whole = count([10] * 16, longest_run=16)
    passes = whole.share <= limits[0] and whole.longest_run <= limits[1]
    assert lets_all_through(*limits, num_bars=16) == passes == is_blind


COMMANDS = (
    [],
    ["--data_weights", "2", "0.5", "--max_transposition", "3"],
    ["--learning_rate", "1.5e-3", "--max_steps", "7", "--spike_sigma", "6", "--phases", "off"],
    ["--attention", "museformer", "--keep_last", "0", "--compile_cache", "somewhere"],
)


@pytest.mark.parametrize("given", COMMANDS)
def test_flags_made_of_settings_settle_to_the_same_settings(given: list[str]) -> None:
    data = ["a", "b"] if "--data_weights" in given else ["a"]
    words = ["--data", *data, "--output", "runs/x", *given]
    config, _ = resolve(parse_flags(TrainConfig, words), "cpu", time_utc="")
    settings = json.loads(json.dumps(config.to_json()))
    again, _ = resolve(
        parse_flags(TrainConfig, words_of(train_flags(settings))), "cpu", time_utc=""
    )
    assert again == config


def run_folder(folder: Path, checkpoints: tuple[int, ...], num_lines: int) -> Path:
    """As much of a run as is looked at for a stretch."""
    for step in checkpoints:
        checkpoint = step_folder(folder, step)
        checkpoint.mkdir(parents=True)
        (checkpoint / STATE_NAME).write_text("{}")
        manifest = {"files": sum_files(checkpoint)}
        (checkpoint / MANIFEST_NAME).write_text(json.dumps(manifest))
    lines = (json.dumps({"step": step, "loss": 1.0}) for step in range(1, num_lines + 1))
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_a_stretch_begins_at_the_newest_intact_checkpoint_with_steps_enough(tmp_path) -> None:
    run = run_folder(tmp_path, (10, 20, 30, 40), 45)
    folder, later = find_stretch(run, 10)
    assert folder.name == "step-30" and list(later) == list(range(31, 41))
    (step_folder(run, 30) / STATE_NAME).write_text("[]")
    assert find_stretch(run, 10)[0].name == "step-20"
    folder, later = find_stretch(run, 40)
    assert (folder.name, later) == ("step-40", {})
    for step in (10, 20, 40):
        (step_folder(run, step) / STATE_NAME).write_text("[]")
    with pytest.raises(CheckpointError, match="none of its checkpoints is intact"):
        find_stretch(run, 10)


def test_a_stretch_holds_no_rollback_and_nothing_of_a_start_with_other_flags(tmp_path) -> None:
    run = run_folder(tmp_path, (10, 20, 30), 40)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # Set back to 30 and on with other data, before 31 was written.
    lines[30]["rolled_back"] = {"from_step": 36, "to_step": 30, "dropped": []}
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert find_stretch(run, 10)[0].name == "step-20"
    assert find_stretch(run, 10, begun_at=20)[0].name == "step-20"
    folder, later = find_stretch(run, 10, begun_at=21)
    assert (folder.name, later) == ("step-30", {})


def test_starts_that_differ_in_how_they_resume_alone_are_as_one() -> None:
    def start(step: int, *command: str, world_size: int = 1) -> dict:
        words = ["train.py", *command, "--seed", "3"]
        return {"step": step, "command": words, "world_size": world_size}

    def begun(*starts: dict) -> int:
        facts = {"run_id": "", "global_batch": 1, "num_steps": 9, "manifest_sha256": ""}
        return begun_at(Run(settings={}, starts=list(starts), **facts))

    assert begun(start(5)) == 5
    assert begun(start(0), start(4, "--resume", "auto"), start(8, "--resume=auto")) == 0
    assert begun(start(0), start(4, "--learning_rate", "1"), start(8)) == 8
    assert begun(start(0, world_size=2), start(4), start(8, "--resume", "auto")) == 4
    # A checkpoint before the newest one was named: what came later is gone.
    assert begun(start(0, world_size=2), start(8), start(4, "--resume", "step-4")) == 4


def test_losses_of_other_tokens_or_of_a_missing_step_lie_apart_without_end() -> None:
    a = {1: {"loss": 2.0, "tokens": 8}, 2: {"loss": 1.0, "tokens": 8}}
    assert widest_gap(a, a) == (0.0, 2)
    assert widest_gap(a, a | {2: {"loss": 1.25, "tokens": 8}}) == (0.25, 2)
    assert widest_gap(a, a | {1: {"loss": 2.0, "tokens": 9}}) == (math.inf, 1)
    assert widest_gap(a, a | {1: {"loss": None, "tokens": 8}}) == (math.inf, 1)
    assert widest_gap(a, {1: a[1]}) == (math.inf, 2)
    assert widest_gap({}, {}) == (math.inf, 0)


def test_a_run_of_more_ranks_than_a_host_has_room_for_goes_on_with_one() -> None:
    assert ranks_here(2, "cpu") == 2 and ranks_here(4096, "cpu") == 1


def test_a_changed_a_new_and_a_removed_file_are_all_seen(tmp_path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    before = snapshot(tmp_path)
    assert check_untouched(tmp_path, before).is_ok
    (tmp_path / "a").write_text("ab")
    (tmp_path / "b").unlink()
    (tmp_path / "d").write_text("d")
    row = check_untouched(tmp_path, before)
    assert not row.is_ok and row.figures["changed"] == ["a", "b", "d"]
