import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import MidiError, ShardError
from meloformer.midi.default_corpus import default_corpus_paths
from meloformer.shards.sources import open_source


def contents(midi: Path | str) -> dict[str, bytes]:
    return {file.name: file.read() for file in open_source(str(midi)).files()}


def make_zip(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, path.relative_to(folder))
    return archive


def make_tar(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as target:
        for path in sorted(folder.rglob("*"), reverse=True):
            target.add(path, str(path.relative_to(folder)), recursive=False)
    return archive


def test_a_folder_gives_its_midi_files_in_order_of_their_names(midi_folder: Path) -> None:
    names = [file.name for file in open_source(str(midi_folder)).files()]
    assert names[0] == "chorale 00.mid"
    assert names[-1] == "deep/transposed.mid"
    assert names == sorted(names)
    assert "deep/er/圣咏.midi" in names
    assert "deep/again.MID" in names
    assert not any(name.endswith(("txt", "LICENSE")) for name in names)


def test_archives_and_lists_give_what_their_folder_gives(midi_folder: Path, tmp_path: Path) -> None:
    expected = contents(midi_folder)
    assert contents(make_zip(midi_folder, tmp_path / "all.zip")) == expected
    assert contents(make_tar(midi_folder, tmp_path / "all.tar.gz")) == expected
    assert contents(make_tar(midi_folder, tmp_path / "all.tar")) == expected
    (midi_folder / "list.txt").write_text("\n".join(sorted(expected)) + "\n\n")
    try:
        assert contents(midi_folder / "list.txt") == expected
    finally:
        (midi_folder / "list.txt").unlink()


def test_a_list_names_files_folders_and_archives_relative_to_itself(
    midi_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(midi_folder, tmp_path / "in")
    make_zip(midi_folder, tmp_path / "all.zip")
    (tmp_path / "list").write_text("in/chorale 01.mid\nall.zip\nin/deep\n/no/such.mid\n")
    names = [file.name for file in open_source(str(tmp_path / "list")).files()]
    assert names[0] == "in/chorale 01.mid"
    assert names[1].startswith("all.zip/")
    assert names[-2] == "in/deep/transposed.mid"
    assert names[-1] == "/no/such.mid"


def test_archives_inside_a_folder_are_opened(midi_folder: Path, tmp_path: Path) -> None:
    make_zip(midi_folder, tmp_path / "a.zip")
    make_tar(midi_folder, tmp_path / "b.tar.gz")
    found = contents(tmp_path)
    for name, data in contents(midi_folder).items():
        assert found[f"a.zip/{name}"] == found[f"b.tar.gz/{name}"] == data


def test_one_midi_file_is_a_source_too(midi_folder: Path) -> None:
    assert list(contents(midi_folder / "chorale 02.mid")) == ["chorale 02.mid"]


def test_the_default_corpus_gives_every_score_as_midi() -> None:
    files = list(open_source("default").files())
    assert len(files) == len(default_corpus_paths())
    assert files[0].read().startswith(b"MThd")
    assert open_source("default").survey().num_files == len(files)


def test_the_survey_counts_files_where_names_alone_tell(midi_folder: Path, tmp_path: Path) -> None:
    num_files = len(contents(midi_folder))
    assert open_source(str(midi_folder)).survey().num_files == num_files
    assert open_source(str(make_zip(midi_folder, tmp_path / "a.zip"))).survey().num_files == (
        num_files
    )
    assert open_source(str(make_tar(midi_folder, tmp_path / "a.tar"))).survey().num_files is None


def test_the_survey_changes_with_a_name_or_a_size(midi_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(midi_folder, copy)
    before = open_source(str(midi_folder)).survey().fingerprint
    assert open_source(str(copy)).survey().fingerprint == before
    (copy / "LICENSE").write_text("no MIDI, so it does not count")
    assert open_source(str(copy)).survey().fingerprint == before
    (copy / "chorale 00.mid").write_bytes(b"shorter")
    assert open_source(str(copy)).survey().fingerprint != before


def test_a_folder_without_midi_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.mp3", "b.mp3", "c.wav", "LICENSE"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ShardError, match=r"4 files \(2 \.mp3, 1 no suffix, 1 \.wav\); allowed are"):
        open_source(str(tmp_path)).survey()


def test_an_archive_without_midi_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp3").write_text("x")
    tar = make_tar(tmp_path / "in", tmp_path / "a.tar")
    with pytest.raises(ShardError, match=r"no MIDI in a\.tar: found 1 files \(1 \.mp3\)"):
        list(open_source(str(tar)).files())


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ShardError,
        match=r"no such file or folder \(looked for /.*allowed: `default`, `chorales`, a folder",
    ):
        open_source(str(tmp_path / "nowhere"))


def test_a_file_that_is_neither_archive_nor_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"\xff\xfb\x90\x00")
    with pytest.raises(ShardError, match="neither a folder"):
        open_source(str(tmp_path / "song.mp3"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_a_damaged_archive_is_named(midi_folder: Path, tmp_path: Path, name: str) -> None:
    make = make_zip if name.endswith("zip") else make_tar
    archive = make(midi_folder, tmp_path / name)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(ShardError, match=rf"{name} is damaged or no archive .*fetch it again"):
        list(open_source(str(archive)).files())


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_cut_anywhere_is_never_taken_for_a_shorter_one(
    midi_folder: Path, tmp_path: Path, name: str
) -> None:
    archive = make_tar(midi_folder, tmp_path / name)
    whole = archive.read_bytes()
    num_files = len(list(open_source(str(archive)).files()))
    end = len(whole) - tarfile.RECORDSIZE if name == "a.tar" else int(0.9 * len(whole))
    for cut in [*np.linspace(1, end, 60).astype(int).tolist(), 512, 1024, 1536]:
        archive.write_bytes(whole[:cut])
        with pytest.raises(ShardError, match="damaged"):
            list(open_source(str(archive)).files())
    archive.write_bytes(whole)
    assert len(list(open_source(str(archive)).files())) == num_files


def test_a_damaged_member_of_a_zip_costs_that_file_alone(midi_folder: Path, tmp_path: Path) -> None:
    archive = make_zip(midi_folder, tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    data[100:140] = bytes(40)  # inside the first member's data
    archive.write_bytes(data)
    first, second, *_ = open_source(str(archive)).files()
    with pytest.raises(MidiError) as rejected:
        first.read()
    assert rejected.value.reason == "unreadable"
    assert second.read().startswith(b"MThd")
