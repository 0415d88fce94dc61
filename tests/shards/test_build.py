import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
from meloformer.shards.build import BuildOptions, build_shards
from meloformer.shards.manifest import SPLITS, Manifest, ShardSettings, load_manifest
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source
from meloformer.shards.verify import find_faults
from meloformer.shards.writing import cut_shards

SETTINGS = ShardSettings(valid_share=0.2, test_share=0.2, pieces_per_shard=4)
NUM_CHORALES = 12


def build(
    midi: Path,
    output: Path,
    *,
    settings: ShardSettings = SETTINGS,
    num_workers: int = 1,
    overwrite: bool = False,
    append: bool = False,
) -> Manifest:
    manifest = build_shards(
        open_source(str(midi)),
        output,
        settings,
        run=local_engine(num_workers),
        options=BuildOptions(overwrite=overwrite, append=append),
    )
    assert manifest is not None
    return manifest


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


def keys_of(folder: Path) -> dict[str, list[str]]:
    shards = ShardFolder.open(folder)
    return {split: shards.split(split).keys() for split in SPLITS}


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
    descriptor = os.open(tmp_path / ".shards.building.json", os.O_RDWR | os.O_CREAT)
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


def start_build(midi: Path, output: Path, *flags: str) -> subprocess.Popen[bytes]:
    """The command of `built`, in its own process group, so that it can be killed whole."""
    recipe = Path(__file__).resolve().parents[2] / "launch/shard_data.py"
    command = [sys.executable, str(recipe), "--midi", str(midi), "--output", str(output)]
    command += ["--valid_share", "0.2", "--test_share", "0.2", "--pieces_per_shard", "4"]
    return subprocess.Popen(
        [*command, "--num_workers", "1", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def states_of(output: Path) -> Iterator[int]:
    """How far a build is: files in its folder, as they come."""
    staging = output.parent / f".{output.name}.building"
    while True:
        yield sum(path.is_file() for path in staging.rglob("*"))
        time.sleep(0.001)


def kill_after(process: subprocess.Popen[bytes], output: Path, num_files: int) -> None:
    """SIGKILL to the build and its workers as soon as so many files lie in its folder."""
    for found in states_of(output):
        if found >= num_files or process.poll() is not None:
            break
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


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
    kill_after(start_build(midi_folder, output), output, 6)
    spill = tmp_path / ".shards.building" / "work" / "spill"
    done = {path.name: path.stat().st_ino for path in spill.glob("*.chunk")}
    build(midi_folder, output)
    assert done, "the kill came before the first chunk"
    assert all_bytes(output) == all_bytes(built)


def test_another_build_does_not_go_on_with_what_a_killed_one_left(
    midi_folder: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    kill_after(start_build(midi_folder, output, "--pedal", "off"), output, 2)
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
            with pytest.raises(
                ShardError, match=r"cannot be written .*make room and give the same"
            ):
                build(midi_folder, output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not output.exists()
    build(midi_folder, output)
    assert all_bytes(output) == all_bytes(built)


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


def find_faults_of(folder: Path) -> list[str]:
    opened = ShardFolder.open(folder)
    return list(find_faults(opened.storage, opened.manifest))


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
    with pytest.raises(ShardError, match=r"made with other settings \(pedal on -> off\)"):
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
    kill_after(start_build(midi_folder, output, "--append"), output, 3)
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
    kill_after(start_build(halves[1], output, "--append"), output, 12)
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
    kill_after(start_build(halves[1], output, "--append"), output, 3)
    shutil.rmtree(tmp_path / ".shards.building")
    assert len(build(halves[1], output, append=True).inputs) == 2


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
