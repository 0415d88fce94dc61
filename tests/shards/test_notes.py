"""A note is whole or as good as absent, whatever cut it short."""

from pathlib import Path

import pytest

from meloformer.shards.notes import read_note, write_note


def test_a_note_comes_back_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for content in ({"圣咏": [1, None]}, [3, ["a"]]):
        write_note(tmp_path / "note.json", content)
        assert read_note(tmp_path / "note.json") == content
    assert [path.name for path in tmp_path.iterdir()] == ["note.json"]


@pytest.mark.parametrize("data", [b"", b'{"a": ', b"\0\0\0\0", b"\xff\xfe"])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "note.json").write_bytes(data)
    assert read_note(tmp_path / "note.json") is None
    assert read_note(tmp_path / "none.json") is None
