"""Files added to a shard folder."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes
from meloformer.shards.manifest import ShardSettings
from tests.shards.builds import (
    all_bytes,
    build,
    facts_by_source,
    find_faults_of,
    kill_after,
    start_build,
    stopped_build,
)

NUM_CHORALES = 12


@pytest.fixture
def halves(midi_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The files of midi_folder as two folders."""
    folders = (tmp_path / "first", tmp_path / "second")
    files = sorted(path for path in midi_folder.rglob("*") if path.is_file())
    for number, path in enumerate(files):
        target = folders[number % 2] / path.relative_to(midi_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folders


def test_appending_moves_nothing_and_loses_nothing(
    midi_folder: Path, halves: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    build(halves[0], output)
    before = facts_by_source(output)
    tars = {name: data for name, data in all_bytes(output).items() if "shard-" in name}
    manifest = build(halves[1], output, append=True)
    after = facts_by_source(output)
    assert {name: after[name] for name in before} == before
    assert tars.items() <= all_bytes(output).items()
    assert manifest.num_in == NUM_CHORALES + 5
    assert manifest.num_pieces == NUM_CHORALES + 1
    assert [entry.name for entry in manifest.inputs] == ["first", "second"]
    assert find_faults_of(output) == []

    again = build(halves[0], output, append=True)
    assert again.num_pieces == manifest.num_pieces
    assert again.num_in == manifest.num_in + manifest.inputs[0].files
    assert find_faults_of(output) == []
    with pytest.raises(ShardError, match="is what it was made from last"):
        build(halves[0], output, append=True)


def one_after_the_other(first: QuantisedPiece, second: QuantisedPiece) -> QuantisedPiece:
    """Both pieces, the second from the bar behind the first on."""
    joined = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in (item.name for item in fields(QuantisedPiece))
    }
    joined["bar"] = np.concatenate([first.bar, second.bar + first.num_bars])
    return QuantisedPiece(**joined)


@pytest.mark.slow
@pytest.mark.parametrize("num_files", [4, 10, 20, 26])
def test_a_killed_append_goes_on_to_the_same_bytes(
    halves: tuple[Path, Path], tmp_path: Path, num_files: int
) -> None:
    for name in ("shards", "expected"):
        build(halves[0], tmp_path / name)
    build(halves[1], tmp_path / "expected", append=True)
    output = tmp_path / "shards"
    kill_after(start_build(halves[1], output, "--append"), output, num_files)
    _, errors = (process := start_build(halves[1], output, "--append")).communicate()
    finished = b"is what it was made from last" in errors  # the kill came too late
    assert process.returncode == 0 or finished, errors
    assert all_bytes(output) == all_bytes(tmp_path / "expected")


def test_appending_with_other_settings_is_refused(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    build(halves[0], output)
    before = all_bytes(output)
    other = ShardSettings(valid_share=0.2, test_share=0.2, pieces_per_shard=4, pedal="off")
    with pytest.raises(
        ShardError, match=r"settings \(pedal on -> off\); give its own \(--pedal on\)"
    ):
        build(halves[1], output, settings=other, append=True)
    with pytest.raises(ShardError, match="is no shard folder"):
        build(halves[1], tmp_path / "nothing", append=True)
    assert all_bytes(output) == before


def test_a_file_that_would_join_two_splits_is_rejected_with_that_reason(
    chorales: list[bytes], tmp_path: Path
) -> None:
    """A medley of a training piece and a test piece resembles both."""
    midi, more = tmp_path / "midi", tmp_path / "more"
    midi.mkdir()
    more.mkdir()
    for number, data in enumerate(chorales):
        (midi / f"{number:02d}.mid").write_bytes(data)
    build(midi, tmp_path / "shards")
    sources = facts_by_source(tmp_path / "shards")
    of_split = {split: name for name, (split, _) in sorted(sources.items())}
    parts = [quantise(read_midi((midi / of_split[split]).read_bytes())) for split in of_split][:2]
    (more / "medley.mid").write_bytes(midi_bytes(to_piece(one_after_the_other(*parts))))
    shutil.copy(more / "medley.mid", more / "again.mid")
    manifest = build(more, tmp_path / "shards", append=True)
    assert manifest.rejected == {"joins_two_splits": 2}
    assert manifest.num_duplicates == 0
    assert facts_by_source(tmp_path / "shards") == sources
    lines = (tmp_path / "shards" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["path"] for line in lines} == {"medley.mid", "again.mid"}
    assert find_faults_of(tmp_path / "shards") == []


def test_an_unfinished_append_is_discarded_and_the_folder_stays(
    halves: tuple[Path, Path], midi_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    build(halves[0], output)
    before = all_bytes(output)
    stopped_build(midi_folder, output, 3, "--append")
    assert all_bytes(output) == before
    with pytest.raises(ShardError, match=r"unfinished build .*--overwrite"):
        build(halves[1], output, append=True)
    manifest = build(halves[1], output, append=True, overwrite=True)
    assert [entry.name for entry in manifest.inputs] == ["first", "second"]
    assert find_faults_of(output) == []


def test_an_append_does_not_go_on_over_another_folder(
    halves: tuple[Path, Path], midi_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    build(halves[0], output)
    stopped_build(halves[1], output, 12, "--append")
    shutil.rmtree(output)
    build(midi_folder, tmp_path / "other")
    (tmp_path / "other").rename(output)
    before = all_bytes(output)
    with pytest.raises(ShardError, match=r"unfinished build .*base"):
        build(halves[1], output, append=True)
    assert all_bytes(output) == before


def test_an_append_whose_work_is_gone_starts_again(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    build(halves[0], output)
    stopped_build(halves[1], output, 3, "--append")
    shutil.rmtree(tmp_path / ".shards.building")
    assert len(build(halves[1], output, append=True).inputs) == 2
