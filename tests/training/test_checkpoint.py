import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from meloformer.errors import CheckpointError, ConfigError
from meloformer.model.tensor_file import FileSum
from meloformer.training import checkpoint
from meloformer.training.checkpoint import (
    TrainingState,
    begin_checkpoint,
    check_files,
    check_owner,
    finish_checkpoint,
    newest_intact,
    set_aside_later,
    step_folder,
    step_folders,
    whole_or_absent,
)
from meloformer.training.run_folder import (
    Run,
    accumulation_for,
    check_restart,
    check_same_run,
    find_checkpoint,
    wanted_resume,
)

STATE = TrainingState(
    run_id="mine",
    step=3,
    cursor={"epoch": 0},
    tokens_seen=10,
    skipped_steps=0,
    world_size=2,
    ds_config={},
    tokenizer_fingerprint="t" * 64,
    settings={},
)


def write_checkpoint(
    run: Path, step: int, keep_last: int = 0, keep_every: int = 0, state: TrainingState = STATE
) -> Path:
    folder = begin_checkpoint(run, step)
    replace(state, step=step).save(folder)
    (folder / "parts" / "part").write_bytes(bytes(range(256)) * 10)
    return finish_checkpoint(folder, keep_last=keep_last, keep_every=keep_every)


def flip_a_byte(folder: Path) -> None:
    path = folder / "parts" / "part"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = folder / "parts" / "part"
    path.write_bytes(path.read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / "parts" / "part").unlink()


def add(folder: Path) -> None:
    (folder / "parts" / "more").write_text("not ours")


def change_state(folder: Path) -> None:
    (folder / "state.json").write_text((folder / "state.json").read_text().replace(": 10", ": 11"))


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


DAMAGE = [flip_a_byte, cut, remove, add, change_state, remove_manifest]


def test_a_finished_checkpoint_verifies_and_reads_back(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 3)
    check_files(folder)
    assert folder == step_folder(tmp_path, 3)
    assert TrainingState.load(folder) == STATE


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_with_the_path_what_was_found_and_what_was_expected(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, 3)
    damage(folder)
    with pytest.raises(CheckpointError, match="expected") as refused:
        check_files(folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_auto_passes_over_a_damaged_checkpoint_and_says_why(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    good, bad = write_checkpoint(tmp_path, 3), write_checkpoint(tmp_path, 20)
    damage(bad)
    found, lines = find_checkpoint(tmp_path, "auto")
    assert found == good
    assert len(lines) == 1 and str(bad) in lines[0]


def test_whatever_byte_of_a_manifest_is_damaged_it_is_refused_or_still_says_the_same(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path, 3)
    manifest = folder / "manifest.json"
    good = manifest.read_bytes()
    files = json.loads(good)["files"]
    num_refused = 0
    for place in range(len(good)):
        manifest.write_bytes(good[:place] + bytes([good[place] ^ 2]) + good[place + 1 :])
        found, lines = newest_intact(tmp_path)
        num_refused += len(lines)
        assert found is None or json.loads(manifest.read_bytes())["files"] == files
    assert num_refused > len(good) / 2


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_checkpoint_that_the_disk_cannot_read_is_passed_over(tmp_path: Path) -> None:
    good, bad = write_checkpoint(tmp_path, 3), write_checkpoint(tmp_path, 20)
    (bad / "parts" / "more").symlink_to("/proc/self/mem")
    found, lines = find_checkpoint(tmp_path, "auto")
    assert found == good
    assert "cannot be read (Input/output error)" in lines[0] and str(bad) in lines[0]


def test_an_old_checkpoint_that_cannot_be_removed_does_not_make_a_new_one_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = write_checkpoint(tmp_path, 5)
    old.rename(tmp_path / "elsewhere")
    old.symlink_to(tmp_path / "elsewhere")  # which rmtree refuses
    for step in (10, 15):
        check_files(write_checkpoint(tmp_path, step, keep_last=1))
    assert f"{old}: cannot be removed yet" in caplog.text
    assert [path.name for path in step_folders(tmp_path)] == ["step-5", "step-15"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a disk that syncs no folder")
def test_a_disk_that_cannot_sync_a_folder_may_hold_checkpoints() -> None:
    checkpoint._sync(Path("/proc/self"))
    with pytest.raises(OSError, match="Invalid argument"):
        checkpoint._sync(Path("/proc/self/status"))


def test_a_checkpoint_that_was_not_finished_does_not_exist(tmp_path: Path) -> None:
    abandoned = begin_checkpoint(tmp_path, 3)
    assert newest_intact(tmp_path) == (None, [])
    write_checkpoint(tmp_path, 4)
    assert not abandoned.exists(), "the next save sweeps it up"


def test_only_the_last_checkpoints_stay_and_steps_count_as_numbers(tmp_path: Path) -> None:
    for step in (5, 90, 100):
        write_checkpoint(tmp_path, step, keep_last=2)
    assert [path.name for path in step_folders(tmp_path)] == ["step-90", "step-100"]


def test_the_newest_checkpoint_of_a_good_step_stays_whatever_comes_after(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5, keep_last=1)
    amid_trouble = replace(STATE, setbacks={"skipped_in_a_row": 2})
    for step in (6, 7):
        write_checkpoint(tmp_path, step, keep_last=1, state=amid_trouble)
        assert [path.name for path in step_folders(tmp_path)] == ["step-5", f"step-{step}"]
    write_checkpoint(tmp_path, 8, keep_last=1)
    assert [path.name for path in step_folders(tmp_path)] == ["step-8"]


def test_every_nth_checkpoint_stays_for_good(tmp_path: Path) -> None:
    for step in range(10, 70, 10):
        write_checkpoint(tmp_path, step, keep_last=2, keep_every=20)
    assert [path.name for path in step_folders(tmp_path)] == [
        *("step-20", "step-40", "step-50", "step-60")
    ]


def test_a_file_that_another_rank_has_written_and_this_one_does_not_see_is_no_checkpoint(
    tmp_path: Path,
) -> None:
    folder = begin_checkpoint(tmp_path, 3)
    with pytest.raises(CheckpointError, match="on a disk that the hosts of all ranks share"):
        finish_checkpoint(folder, keep_last=0, sums={"parts/other": FileSum(3, "0" * 64)})
    assert newest_intact(tmp_path) == (None, [])


def test_checkpoints_after_the_one_resumed_from_no_longer_count(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        write_checkpoint(tmp_path, step)
    set_aside_later(tmp_path, 5)
    assert newest_intact(tmp_path)[0] == step_folder(tmp_path, 5)
    write_checkpoint(tmp_path, 10)
    assert newest_intact(tmp_path)[0] == step_folder(tmp_path, 10)


def test_what_a_resumed_run_makes_again_is_set_aside_until_something_newer_is_sealed(
    tmp_path: Path,
) -> None:
    for step in (5, 10, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "model").mkdir()
    renamed = set_aside_later(tmp_path, 5)
    assert [path.name.split(".")[0] for path in renamed] == ["step-10", "step-20", "model"]
    assert not (tmp_path / "model").exists() and all(path.is_dir() for path in renamed)
    write_checkpoint(tmp_path, 8)
    assert not any(path.exists() for path in renamed)
    assert [path.name for path in step_folders(tmp_path)] == ["step-5", "step-8"]


def test_a_model_that_cannot_be_written_leaves_the_one_before_and_nothing_else(
    tmp_path: Path,
) -> None:
    def write(folder: Path, content: str) -> None:
        folder.mkdir()
        (folder / "weights").write_text(content)
        if content == "half":
            raise OSError("no space left")

    model = tmp_path / "model"
    assert whole_or_absent(model, lambda at: write(at, "whole")) == model
    with pytest.raises(CheckpointError, match=r"model: cannot be written \(no space left\).*room"):
        whole_or_absent(model, lambda at: write(at, "half"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (model / "weights").read_text() == "whole"


def test_a_checkpoint_of_another_run_or_vocabulary_is_refused(tmp_path: Path) -> None:
    check_owner(STATE, tmp_path, "mine", "t" * 64)
    with pytest.raises(CheckpointError, match="found a checkpoint of run mine, expected yours"):
        check_owner(STATE, tmp_path, "yours", "t" * 64)
    with pytest.raises(CheckpointError, match="found tokenizer"):
        check_owner(STATE, tmp_path, "mine", "u" * 64)


def test_a_state_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, 3)
    state = json.loads((folder / "state.json").read_text()) | {"format_version": 99}
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="found format 99, expected 2"):
        TrainingState.load(folder)


def test_a_folder_that_holds_a_run_is_refused_without_a_wish_to_go_on(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, "none") == (None, [])
    assert find_checkpoint(tmp_path / "absent", "auto")[0] is None
    write_checkpoint(tmp_path, 3)
    with pytest.raises(ConfigError, match="holds a run"):
        find_checkpoint(tmp_path, "none")


def test_a_named_checkpoint_must_be_of_this_run_folder_and_whole(tmp_path: Path) -> None:
    mine, other = write_checkpoint(tmp_path / "a", 3), write_checkpoint(tmp_path / "b", 3)
    assert find_checkpoint(tmp_path / "a", str(mine))[0] == mine
    with pytest.raises(CheckpointError, match="--init_from"):
        find_checkpoint(tmp_path / "a", str(other))
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(tmp_path / "a", str(tmp_path / "c"))
    cut(mine)
    with pytest.raises(CheckpointError, match="found 2559 bytes, expected 2560"):
        find_checkpoint(tmp_path / "a", str(mine))


@pytest.mark.parametrize(
    ("resume", "environment", "expected"),
    [
        (None, {}, "none"),
        (None, {"TORCHELASTIC_RESTART_COUNT": "0"}, "none"),
        (None, {"TORCHELASTIC_RESTART_COUNT": "2"}, "auto"),
        (None, {"SLURM_RESTART_COUNT": "1"}, "auto"),
        ("none", {"SLURM_RESTART_COUNT": "1"}, "none"),
    ],
)
def test_a_restarted_run_goes_on_by_itself(
    resume: str | None, environment: dict, expected: str
) -> None:
    assert wanted_resume(resume, environment) == expected


def test_a_restarted_run_that_does_not_say_where_it_is_never_starts_anew() -> None:
    check_restart(None, {"TORCHELASTIC_RESTART_COUNT": "0"})
    check_restart(Path("runs/mine"), {"TORCHELASTIC_RESTART_COUNT": "1"})
    with pytest.raises(ConfigError, match=r"SLURM_RESTART_COUNT=2 .* allowed: .* give --output"):
        check_restart(None, {"SLURM_RESTART_COUNT": "2"})


def test_a_resumed_run_keeps_what_its_plan_and_model_depend_on(tmp_path: Path) -> None:
    settings = {
        "model_size": "tiny",
        "max_seq_len": 1024,
        "seed": 0,
        "collate": "pack",
        "attention": "halves",
    }
    run = Run(
        run_id="mine",
        settings=settings,
        global_batch=48,
        num_steps=10,
        manifest_sha256="m" * 64,
        starts=[],
    )
    run.save(tmp_path)
    assert Run.load(tmp_path) == run
    check_same_run(run, settings, "m" * 64)
    with pytest.raises(ConfigError, match=r"--seed 1: .* 0"):
        check_same_run(run, settings | {"seed": 1}, "m" * 64)
    with pytest.raises(ConfigError, match="manifest"):
        check_same_run(run, settings, "n" * 64)


def test_the_accumulation_follows_the_ranks_so_that_a_step_keeps_its_rows() -> None:
    for world_size in range(1, 9):
        assert accumulation_for(48, 6, world_size) * 6 * world_size >= 48
    assert [accumulation_for(48, 6, world_size) for world_size in (1, 2, 4, 8)] == [8, 4, 2, 1]


def test_auto_never_starts_anew_over_damaged_checkpoints(tmp_path: Path) -> None:
    cut(write_checkpoint(tmp_path, 3))
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is intact"):
        find_checkpoint(tmp_path, "auto")
