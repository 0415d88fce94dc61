import errno
import inspect
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import ShardError
from meloformer.shards.sources import open_source, walk
from tests.shards.sources.outcomes import outcomes

NAMES = st.sets(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=6).map(
        lambda text: f"{text}.mid"
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=30, deadline=None)
@given(names=NAMES, run=st.integers(1, 10))
def test_a_folder_too_large_for_memory_comes_in_the_same_order(
    names: set[str], run: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("large")
    for name in names:
        (folder / name).touch()
    (folder / "deep").mkdir()
    (folder / "deep" / "z.mid").touch()
    whole = [file.name for file in open_source(str(folder)).files()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "_ENTRIES_PER_RUN", run)
        patch.setattr(walk, "_RUN_READ_BYTES", 7)
        assert [file.name for file in open_source(str(folder)).files()] == whole
    assert set(whole) == names | {"deep/z.mid"}
    assert whole == sorted(whole)


def test_a_name_that_is_not_utf8_is_read_and_written_with_escapes(
    tmp_path: Path, chorales: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mid", "wb") as file:
        file.write(chorales[0])
    (tmp_path / "b.mid").write_bytes(chorales[1])
    expected = {"b.mid": chorales[1], "caf\\xe9.mid": chorales[0]}
    assert outcomes(tmp_path) == expected
    monkeypatch.setattr(walk, "_ENTRIES_PER_RUN", 1)
    assert outcomes(tmp_path) == expected


def test_folders_deeper_than_calls_may_be_are_walked(tmp_path: Path, chorales: list[bytes]) -> None:
    depth = 60
    deepest = tmp_path.joinpath(*["d"] * depth)
    deepest.mkdir(parents=True)
    (deepest / "a.mid").write_bytes(chorales[0])
    frames = len(inspect.stack())
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(frames + depth)
    try:
        assert list(outcomes(tmp_path).values()) == [chorales[0]]
    finally:
        sys.setrecursionlimit(limit)


def test_links_pipes_and_what_is_gone_are_counted_with_their_reason(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    inside = tmp_path / "in"
    (inside / "folder").mkdir(parents=True)
    (inside / "folder" / "a.mid").write_bytes(chorales[0])
    (inside / "link.mid").symlink_to(inside / "folder" / "a.mid")
    (inside / "round").symlink_to(inside)
    (inside / "nowhere.mid").symlink_to(tmp_path / "gone.mid")
    (inside / "nowhere.zip").symlink_to(tmp_path / "gone.zip")
    os.mkfifo(inside / "pipe.mid")
    assert outcomes(inside) == {
        "folder/a.mid": chorales[0],
        "link.mid": chorales[0],
        "round": "link",
        "nowhere.mid": "missing_file",
        "nowhere.zip": "not_a_file",
        "pipe.mid": "not_a_file",
    }
    assert open_source(str(inside)).survey().num_files == 6


def test_a_folder_that_may_not_be_read_is_counted(
    tmp_path: Path, chorales: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.mid").write_bytes(chorales[0])
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read everything, so permissions do not help
        if path.endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert outcomes(tmp_path) == {"a.mid": chorales[0], "closed/": "unreadable"}


def test_archives_that_are_not_read_are_counted(tmp_path: Path, chorales: list[bytes]) -> None:
    (tmp_path / "a.mid").write_bytes(chorales[0])
    for name in ("b.rar", "c.7z", "d.tar.zst"):
        (tmp_path / name).write_bytes(b"packed")
    reasons = dict.fromkeys(["b.rar", "c.7z", "d.tar.zst"], "unopened_archive")
    assert outcomes(tmp_path) == {"a.mid": chorales[0]} | reasons


@pytest.mark.parametrize(
    "name", ["a.kar", "a.RMI", "a.smf", "a.mid.gz", "a.midi.gz", "a.KAR.GZ", "v1.0.mid"]
)
def test_these_names_are_midi(tmp_path: Path, chorales: list[bytes], name: str) -> None:
    (tmp_path / name).write_bytes(chorales[0])
    assert outcomes(tmp_path) == {name: chorales[0]}


def test_each_line_of_a_list_ends_as_something(tmp_path: Path, chorales: list[bytes]) -> None:
    (tmp_path / "a.mid").write_bytes(chorales[0])
    (tmp_path / "no suffix").write_bytes(chorales[1])
    lines = [
        "\ufeffa.mid\r",
        "no suffix",
        "gone.mid",
        "gone.zip",
        "gone.parquet",
        "a.mid/b.mid",
        "empty/",
    ]
    (tmp_path / "empty").mkdir()
    (tmp_path / "list").write_text("\n".join(lines), encoding="utf-8")
    assert outcomes(tmp_path / "list") == {
        "a.mid": chorales[0],
        "no suffix": chorales[1],
        "gone.mid": "missing_file",
        "gone.zip": "missing_file",
        "gone.parquet": "missing_file",
        "a.mid/b.mid": "missing_file",
        "empty/": "no_midi",
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", b"# Songs\n\nFree to use.\nLICENSE\ncode/\n"),
        ("list.txt", b"gone.mid\nalso/gone.mid\n"),
        ("empty", b""),
        ("film.mp4", bytes(10**6)),
        ("song.mp3", b"\xff\xfb\x90\x00"),
        ("long", b"a" * 10**6),
    ],
)
def test_a_file_that_is_no_list_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "code").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShardError, match=f"{name}: neither a folder") as refused:
        open_source(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_a_list_is_read_line_by_line(tmp_path: Path, chorales: list[bytes]) -> None:
    (tmp_path / "a.mid").write_bytes(chorales[0])
    (tmp_path / "list").write_text("a.mid\n" * 1000 + "x" * 10**6)
    files = open_source(str(tmp_path / "list")).files()
    assert [next(files).name for _ in range(1000)] == ["a.mid"] * 1000
    with pytest.raises(ShardError, match="a line of more than"):
        next(files)


def test_comments_and_empty_lines_of_a_list_name_nothing(
    tmp_path: Path, chorales: list[bytes]
) -> None:
    for name in ("a.mid", "#1 hit.mid"):
        (tmp_path / name).write_bytes(chorales[0])
    (tmp_path / "list").write_text("# mine\n\n  # and yours\na.mid\n#1 hit.mid\n")
    assert list(outcomes(tmp_path / "list")) == ["a.mid", "#1 hit.mid"]
