import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.shards.build import build_shards, cut_shards, separate_copies
from meloformer.shards.manifest import SPLITS, Manifest, ShardSettings, load_manifest
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source
from meloformer.shards.spill import RECORD
from meloformer.shards.verify import differences_from_webdataset, find_faults

SETTINGS = ShardSettings(valid_share=0.2, test_share=0.2, pieces_per_shard=4)
NUM_CHORALES = 12


def build(
    midi: Path,
    output: Path,
    *,
    settings: ShardSettings = SETTINGS,
    num_workers: int = 1,
    overwrite: bool = False,
) -> Manifest:
    source = open_source(str(midi))
    return build_shards(source, output, settings, num_workers=num_workers, overwrite=overwrite)


def all_bytes(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def built(midi_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "shards"
    build(midi_folder, folder)
    return folder


def facts_by_source(folder: Path) -> dict[str, tuple[str, dict]]:
    """Split and facts of every piece."""
    shards = ShardFolder.open(folder)
    found = {}
    for split in SPLITS:
        index = shards.split(split)
        for piece in range(index.num_pieces):
            facts = index.facts(piece)
            found[facts["source"]] = (split, facts)
    return found


def test_two_workers_write_the_same_bytes_as_one(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    build(midi_folder, tmp_path / "two", num_workers=2)
    assert all_bytes(tmp_path / "two") == all_bytes(built)


def test_every_file_that_came_in_is_a_piece_a_duplicate_or_rejected(built: Path) -> None:
    manifest = load_manifest(built)
    assert manifest.num_in == NUM_CHORALES + 5
    assert manifest.num_pieces == NUM_CHORALES + 1
    assert manifest.num_duplicates == 2
    assert manifest.num_rejected == 2
    assert list(find_faults(ShardFolder.open(built))) == []


def test_what_is_left_out_is_written_down_with_its_reason(built: Path) -> None:
    lines = (built / "rejected.jsonl").read_text().splitlines()
    entries = {entry["path"]: entry for entry in map(json.loads, lines)}
    assert entries.keys() == {
        "deep/broken.mid",
        "deep/empty.mid",
        "chorale 03.mid",
        "deep/er/圣咏.midi",
    } ^ {"chorale 03.mid", "deep/again.MID"}
    assert entries["deep/broken.mid"]["reason"] == "unreadable"
    for name in ("deep/again.MID", "deep/er/圣咏.midi"):
        assert entries[name]["reason"] == "duplicate"
        assert entries[name]["repeats"] == "chorale 03.mid"


def test_a_transposed_copy_stays_and_shares_the_split(built: Path) -> None:
    pieces = facts_by_source(built)
    original, copy = pieces["chorale 05.mid"], pieces["deep/transposed.mid"]
    assert original[0] == copy[0]
    assert original[1]["tune"] == copy[1]["tune"]


def test_facts_say_what_the_piece_is(built: Path) -> None:
    _, facts = facts_by_source(built)["chorale 00.mid"]
    assert facts["metres"] == ["4/4"] or "4/4" in facts["metres"]
    assert facts["num_notes"] > 100
    assert facts["tempo_bpm"][0] <= facts["tempo_bpm"][1]
    assert facts["key"].split()[1] in ("major", "minor")
    assert 10 < facts["duration_seconds"] < 600
    assert all(name.startswith("#") for name in facts["instruments"])
    assert facts["quantised"]["notes"] >= facts["num_notes"]


def test_archives_give_the_same_shards_as_their_folder(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    expected = {name: data for name, data in all_bytes(built).items() if "shard-" in name}
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "all"), kind, midi_folder)
        build(Path(archive), tmp_path / kind)
        found = {n: data for n, data in all_bytes(tmp_path / kind).items() if "shard-" in n}
        if kind == "zip":
            assert found == expected
        else:  # make_archive puts `./` before the names of a tar
            assert keys_of(tmp_path / kind) == keys_of(built)


def keys_of(folder: Path) -> dict[str, list[str]]:
    shards = ShardFolder.open(folder)
    return {split: shards.split(split).keys.tolist() for split in SPLITS}


def test_more_files_never_move_a_piece_to_another_split(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(midi_folder.glob("*.mid"))[::2]:
        shutil.copy(path, few)
    build(few, tmp_path / "shards")
    many = facts_by_source(built)
    for name, (split, _) in facts_by_source(tmp_path / "shards").items():
        assert many[name][0] == split


def test_shards_are_cut_at_the_limit_of_pieces(built: Path) -> None:
    train = load_manifest(built).splits["train"]
    assert [entry.pieces for entry in train[:-1]] == [SETTINGS.pieces_per_shard] * (len(train) - 1)


def test_shards_are_cut_at_the_limit_of_bytes() -> None:
    sizes = np.array([4, 4, 9, 1, 1, 1, 1])
    settings = ShardSettings(bytes_per_shard=8, pieces_per_shard=3)
    assert cut_shards(sizes, settings) == [slice(0, 2), slice(2, 3), slice(3, 6), slice(6, 7)]
    assert cut_shards(sizes[:0], settings) == []


def test_of_exact_copies_the_one_with_the_smallest_name_stays() -> None:
    records = np.zeros(5, RECORD)
    records["key"] = [b"b", b"a", b"b", b"c", b"b"]
    records["offset"] = range(5)
    names = ["z", "y", "x", "w", "x"]
    kept, copies = separate_copies(records, lambda record: names[record["offset"]])
    assert kept["offset"].tolist() == [1, 2, 3]
    assert [(int(c.record["offset"]), int(c.repeats["offset"])) for c in copies] == [(4, 2), (0, 2)]


def test_a_taken_output_is_refused_with_what_differs(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    before = all_bytes(built)
    with pytest.raises(ShardError, match=r"from the same input with the same settings; nothing"):
        build(midi_folder, built)
    other = ShardSettings(valid_share=0.2, test_share=0.2, pieces_per_shard=4, pedal="off")
    with pytest.raises(ShardError, match="made otherwise: pedal on -> off; nothing was written"):
        build(midi_folder, built, settings=other)
    with pytest.raises(ShardError, match=r"made otherwise: input .* \(names or sizes differ\)"):
        build(midi_folder / "deep", built)
    assert all_bytes(built) == before


def test_overwrite_replaces_shards(midi_folder: Path, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "shards")
    (tmp_path / "shards" / "rejected.jsonl").write_text("old")
    build(midi_folder, tmp_path / "shards", overwrite=True)
    assert all_bytes(tmp_path / "shards") == all_bytes(built)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_nothing_but_shards_is_ever_overwritten(midi_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("dear diary")
    for overwrite in (False, True):
        with pytest.raises(ShardError, match=r"found something that is no shard folder"):
            build(midi_folder, tmp_path, overwrite=overwrite)
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


def test_an_empty_folder_may_become_the_output(midi_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    build(midi_folder, tmp_path / "shards")
    assert load_manifest(tmp_path / "shards").num_pieces


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    midi = tmp_path / "midi"
    midi.mkdir()
    (midi / "broken.mid").write_bytes(b"MThd")
    with pytest.raises(ShardError, match=r"no usable MIDI in midi: all 1 files .*1 unreadable"):
        build(midi, tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["midi"]


def test_what_a_killed_build_left_is_swept_away(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    stale = tmp_path / ".shards.building"
    (stale / "train").mkdir(parents=True)
    (stale / "train" / "shard-000000.tar").write_bytes(b"half a shard")
    build(midi_folder, tmp_path / "shards")
    assert all_bytes(tmp_path / "shards") == all_bytes(built)
    assert not stale.exists()


def test_two_builds_into_one_folder_do_not_mix(midi_folder: Path, tmp_path: Path) -> None:
    staging = tmp_path / ".shards.building"
    staging.mkdir()
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another build writes there now"):
            build(midi_folder, tmp_path / "shards")
    finally:
        os.close(descriptor)


def test_a_disk_that_refuses_is_one_clear_error(midi_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(ShardError, match=r"cannot be written .*give another --output"):
        build(midi_folder, tmp_path / "file" / "shards")


def test_the_manifest_holds_no_time_and_no_path(built: Path, midi_folder: Path) -> None:
    text = (built / "manifest.json").read_text()
    assert str(midi_folder.parent) not in text
    assert json.loads(text).keys() == {
        "format",
        "format_version",
        "tokenizer",
        "settings",
        "input",
        "counts",
        "rejected_by_reason",
        "quantised",
        "splits",
    }


@pytest.mark.slow
def test_all_shared_corpora_in_one_go_become_shards_that_are_whole(
    shared_corpora: Path, tmp_path: Path
) -> None:
    manifest = build(shared_corpora, tmp_path / "shards", settings=ShardSettings(), num_workers=2)
    assert manifest.num_in == manifest.num_pieces + manifest.num_duplicates
    assert manifest.num_in > 4000
    folder = ShardFolder.open(tmp_path / "shards")
    assert list(find_faults(folder)) == []
    assert list(differences_from_webdataset(folder)) == []
    index = folder.split("train")
    sources = {index.facts(piece)["source"].split("/")[0] for piece in range(index.num_pieces)}
    assert sources == {path.name for path in shared_corpora.glob("*.tar.gz")}


def test_overwrite_never_takes_a_file_along_that_is_not_of_a_shard_folder(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    shutil.copytree(built, output)
    (output / "train" / "notes.txt").write_text("mine")
    with pytest.raises(ShardError, match=r"found train/notes\.txt"):
        build(midi_folder, output, overwrite=True)
    assert (output / "train" / "notes.txt").read_text() == "mine"
    assert (output / "manifest.json").is_file()
