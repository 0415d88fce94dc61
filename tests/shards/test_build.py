"""What a build writes, and what it refuses to touch."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.shards.build import BuildOptions, NothingUsableError, build_shards
from meloformer.shards.manifest import ShardSettings, load_manifest
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source
from meloformer.shards.writing import cut_shards
from tests.shards.builds import (
    SETTINGS,
    all_bytes,
    build,
    facts_by_source,
    find_faults_of,
    keys_of,
)

NUM_CHORALES = 12


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
    assert find_faults_of(built) == []


def test_what_is_left_out_is_written_down_with_its_reason(built: Path) -> None:
    lines = (built / "rejected.jsonl").read_text().splitlines()
    entries = {entry["path"]: entry for entry in map(json.loads, lines)}
    assert entries.keys() == {
        "deep/broken.mid",
        "deep/empty.mid",
        "chorale 03.mid",
        "deep/er/圣咏.midi",
    } ^ {"chorale 03.mid", "deep/again.MID"}
    assert entries["deep/broken.mid"]["reason"] == "too_few_bars"  # its first bar is recovered
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


def test_a_taken_output_is_refused_with_what_differs(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    before = all_bytes(built)
    with pytest.raises(ShardError, match=r"from the same input with the same settings; nothing"):
        build(midi_folder, built)
    other = ShardSettings(valid_share=0.2, test_share=0.2, pieces_per_shard=4, pedal="off")
    with pytest.raises(ShardError, match="made otherwise: pedal on -> off; nothing was written"):
        build(midi_folder, built, settings=other)
    with pytest.raises(ShardError, match=rf"input .* \(names or sizes differ\).* {built} --append"):
        build(midi_folder / "deep", built)
    assert all_bytes(built) == before


def test_what_a_refusal_tells_to_do_works(midi_folder: Path, built: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(built, old)
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    with pytest.raises(ShardError, match="found format version 1, expected") as caught:
        build(midi_folder, old)
    assert "--append" not in str(caught.value)
    (tmp_path / "old-2").touch()
    with pytest.raises(ShardError, match=rf"--output {old} --overwrite.*--output {old}-3\)"):
        build(midi_folder, old)
    build(midi_folder, old, overwrite=True)
    assert all_bytes(old) == all_bytes(built)
    with pytest.raises(ShardError, match=r"\(a file\).*give another, such as --output .*old-2-2"):
        build(midi_folder, tmp_path / "old-2")


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
    (midi / "linked.mid").symlink_to("nowhere")
    (midi / "short.mid").write_bytes(b"MThd")
    with pytest.raises(NothingUsableError, match=r"all 3 files were rejected \(2 .*, 1 ") as caught:
        build(midi, tmp_path / "shards")
    assert [(found.count, found.path) for found in caught.value.rejections] == [
        (2, "broken.mid"),
        (1, "linked.mid"),
    ]
    assert all(found.reason and found.detail for found in caught.value.rejections)
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
    descriptor = os.open(tmp_path / ".shards.building.lock", os.O_RDWR | os.O_CREAT)
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
        "inputs",
        "counts",
        "rejected_by_reason",
        "near_copies",
        "quantised",
        "splits",
    }


@pytest.mark.slow
def test_all_shared_corpora_in_one_go_become_shards_that_are_whole(
    shared_corpora: Path, tmp_path: Path
) -> None:
    manifest = build(shared_corpora, tmp_path / "shards", settings=ShardSettings(), num_workers=2)
    assert manifest.num_rejected < 0.01 * manifest.num_in
    assert manifest.num_in > 4000
    folder = ShardFolder.open(tmp_path / "shards")
    assert find_faults_of(tmp_path / "shards") == []
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


def test_a_link_to_the_output_is_followed(midi_folder: Path, built: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "shards")
    build(midi_folder, tmp_path / "link")
    assert all_bytes(tmp_path / "disk" / "shards") == all_bytes(built)


def test_what_comes_into_the_output_during_a_build_is_not_deleted(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    shutil.copytree(built, output)
    engine = local_engine(1)

    def run(task, jobs, **options):
        (output / "notes.txt").write_text("mine")
        return engine(task, jobs, **options)

    options = BuildOptions(overwrite=True)
    with pytest.raises(ShardError, match=r"notes\.txt, which came there during the build"):
        build_shards(open_source(str(midi_folder)), output, SETTINGS, run=run, options=options)
    assert (output / "notes.txt").read_text() == "mine"
    (output / "notes.txt").unlink()
    build(midi_folder, output, overwrite=True)
    assert all_bytes(output) == all_bytes(built)


def test_a_report_is_written_and_nothing_else(midi_folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    options = BuildOptions(report=report)
    source = open_source(str(midi_folder))
    for _ in range(2):  # the second one over the first
        assert (
            build_shards(source, tmp_path / "x", SETTINGS, run=local_engine(1), options=options)
            is None
        )
        assert sorted(path.name for path in report.iterdir()) == ["pieces.parquet", "report.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ShardError, match=r"--report .*cannot be made"):
        build_shards(
            source,
            tmp_path / "x",
            SETTINGS,
            run=local_engine(1),
            options=BuildOptions(report=tmp_path / "file"),
        )
