"""A run folder belongs to one process at a time, and says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from meloformer.errors import ConfigError
from meloformer.training.run_folder import Run, find_checkpoint, lock_run

HOLDER = (
    "import sys; from pathlib import Path; from meloformer.training.run_folder import lock_run;"
    "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


def test_a_folder_that_another_process_trains_in_is_refused_until_it_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="another process trains there now"):
        lock_run(tmp_path)
    other.kill()
    other.wait()
    lock_run(tmp_path).close()


def test_shards_of_a_run_are_those_that_were_typed_older_runs_too(tmp_path: Path) -> None:
    (spaced := tmp_path / "of mine").mkdir()
    for written, expected in (
        ([str(spaced), "data_shards/b"], [str(spaced), "data_shards/b"]),
        (str(spaced), [str(spaced)]),
        ("data_shards/a data_shards/b", ["data_shards/a", "data_shards/b"]),
        (None, []),
    ):
        Run(
            run_id="id",
            settings={"data": written},
            global_batch=1,
            num_steps=1,
            manifest_sha256="sum",
            starts=[],
        ).save(tmp_path)
        assert Run.load(tmp_path).data == expected


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot be written"):
            lock_run(place)


def test_resume_auto_says_that_it_found_nothing(tmp_path: Path) -> None:
    found, (note,) = find_checkpoint(tmp_path / "nowhere", "auto")
    assert found is None
    assert "holds no run; a new one starts" in note
