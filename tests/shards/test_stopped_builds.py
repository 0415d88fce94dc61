"""Builds that are killed, run out of room, or lose their input."""

import re
import resource
import shutil
import signal
from pathlib import Path

import pytest

from meloformer.errors import ShardError
from meloformer.shards.build import build_shards
from meloformer.shards.pool import local_engine
from meloformer.shards.sources import open_source
from tests.shards.builds import (
    SETTINGS,
    all_bytes,
    build,
    keys_of,
    kill_after,
    start_build,
    stopped_build,
)


@pytest.mark.slow
@pytest.mark.parametrize("num_files", [1, 3, 5, 8, 12, 16, 20, 23, 25])
def test_a_build_killed_at_any_moment_goes_on_to_the_same_bytes(
    midi_folder: Path, built: Path, tmp_path: Path, num_files: int
) -> None:
    output = tmp_path / "shards"
    for _ in range(2):  # killed twice at the same place
        kill_after(start_build(midi_folder, output), output, num_files)
    _, errors = (process := start_build(midi_folder, output)).communicate()
    finished = b"from the same input with the same settings" in errors  # the kill came too late
    assert process.returncode == 0 or finished, errors
    assert all_bytes(output) == all_bytes(built)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_killed_build_goes_on_where_it_stopped(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    stopped_build(midi_folder, output, 6)
    spill = tmp_path / ".shards.building" / "work" / "spill"
    done = {path.name: path.stat().st_ino for path in spill.glob("*.chunk")}
    build(midi_folder, output)
    assert done, "the kill came before the first chunk"
    assert all_bytes(output) == all_bytes(built)


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_build_stopped_by_a_signal_says_in_one_line_how_to_go_on(
    midi_folder: Path, built: Path, tmp_path: Path, number: signal.Signals, name: str
) -> None:
    output = tmp_path / "shards"
    code, said = stopped_build(midi_folder, output, 1, number=number)
    assert said == f"stopped by {name}; the same command goes on where this one stopped\n"
    assert code == 128 + number
    build(midi_folder, output)
    assert all_bytes(output) == all_bytes(built)


def test_another_build_does_not_go_on_with_what_a_killed_one_left(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    stopped_build(midi_folder, output, 2, "--pedal", "off")
    before = all_bytes(tmp_path)
    with pytest.raises(ShardError, match=r"unfinished build .*pedal off -> on.*--overwrite"):
        build(midi_folder, output)
    assert all_bytes(tmp_path) == before
    build(midi_folder, output, overwrite=True)
    assert all_bytes(output) == all_bytes(built)


def test_a_full_disk_is_one_clear_error_and_room_lets_the_build_go_on(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the disk's end: the same error, no root needed."""
    output = tmp_path / "shards"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 5_000, 15_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            process = start_build(midi_folder, output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        said = process.communicate()[1].decode()
        assert re.search("cannot be written .*make room and give the same", said)
        assert process.returncode == 2
        assert not output.exists()
    build(midi_folder, output)
    assert all_bytes(output) == all_bytes(built)


def test_input_that_goes_away_stops_the_build_and_loses_nothing(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    midi, output = tmp_path / "midi", tmp_path / "shards"
    shutil.copytree(midi_folder, midi)
    source = open_source(str(midi))
    engine = local_engine(1)

    def run(task, jobs, **options):
        jobs = list(jobs)  # every file is listed
        if midi.exists():
            midi.rename(tmp_path / "away")
        return engine(task, jobs, **options)

    with pytest.raises(ShardError, match=r"--midi went away during the build"):
        build_shards(source, output, SETTINGS, run=run)
    assert not output.exists()
    (tmp_path / "away").rename(midi)
    build(midi, output)
    assert keys_of(output) == keys_of(built)


@pytest.mark.parametrize("left", [b"[3, [", pytest.param(b"[]", marks=pytest.mark.slow)])
def test_notes_that_a_loss_of_power_cut_short_are_done_again(
    midi_folder: Path, built: Path, tmp_path: Path, left: bytes
) -> None:
    output = tmp_path / "shards"
    note = tmp_path / ".shards.building.json"
    staging = stop_before_the_end(midi_folder, output)
    (staging / "manifest.json").unlink()
    notes = [staging / "work/spill/done.json", *staging.glob("work/entries/*.json")]
    assert len(notes) > 3
    for path in notes:
        assert path.is_file()
        path.write_bytes(left)
    build(midi_folder, output)
    assert all_bytes(output) == all_bytes(built)
    assert not note.exists()

    shutil.rmtree(output)
    stop_before_the_end(midi_folder, output)
    note.write_bytes(left)
    build(midi_folder, output)
    assert all_bytes(output) == all_bytes(built)


def test_pieces_that_a_loss_of_power_emptied_are_converted_again(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    staging = stop_before_the_end(midi_folder, output)
    for path in (staging / "manifest.json", *staging.glob("work/entries/*.json")):
        path.unlink()
    pieces = next(staging.glob("work/spill/*.pieces"))
    pieces.write_bytes(bytes(pieces.stat().st_size))
    assert (staging / "work/spill/done.json").is_file()
    build(midi_folder, output)
    assert all_bytes(output) == all_bytes(built)


@pytest.mark.parametrize(
    "name",
    [
        "train/shard-000000.tar",
        pytest.param("manifest.json", marks=pytest.mark.slow),
        pytest.param("valid/*.npz", marks=pytest.mark.slow),
    ],
)
def test_files_that_a_loss_of_power_cut_short_are_written_again(
    midi_folder: Path, built: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "shards"
    path = next(stop_before_the_end(midi_folder, output).glob(name))
    path.write_bytes(path.read_bytes()[:100])
    build(midi_folder, output)
    assert all_bytes(output) == all_bytes(built)


def stop_before_the_end(midi: Path, output: Path) -> Path:
    """Stop a build when all is written and only the name is wrong; the folder that it leaves."""
    engine = local_engine(1)

    def run(task, jobs, **options):
        output.mkdir(exist_ok=True)
        (output / "in the way").touch()
        return engine(task, jobs, **options)

    with pytest.raises(ShardError, match="found in the way, which came there during the build"):
        build_shards(open_source(str(midi)), output, SETTINGS, run=run)
    shutil.rmtree(output)
    return output.parent / f".{output.name}.building"
