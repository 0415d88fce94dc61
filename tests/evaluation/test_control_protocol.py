"""text2midi's protocol on a user's file: what lines ask for, which are left out, which refused."""

import json
from pathlib import Path

import pytest

from meloformer.errors import ConfigError
from meloformer.evaluation.control_protocol import parse_key, protocol_numbers, protocol_pieces
from meloformer.evaluation.control_rows import Generated, judge_row
from meloformer.midi.harmony import estimate_key
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import NUM_KEYS, key_name
from meloformer.tokens.windows import cut_window


@pytest.fixture(scope="module")
def folder(chorale_shards: Path) -> ShardFolder:
    return ShardFolder.open(chorale_shards)


def source(folder: ShardFolder, split: str, place: int = 0) -> str:
    return str(folder.split(split).facts(place)["source"])


def lines(path: Path, *entries: dict) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def chosen(path: Path, folder: ShardFolder, num_pieces: int = 300):
    return protocol_pieces(path, folder, num_pieces=num_pieces, num_bars=4, seed=0)


def test_what_a_line_states_comes_before_what_its_piece_is(folder, tmp_path) -> None:
    own = source(folder, "test")
    path = lines(
        tmp_path / "c.jsonl",
        {"location": own, "caption": "one"},
        {"location": f"lmd/{own}", "caption": "two", "tempo": 77, "key": "Db major"},
        {"location": "elsewhere.mid", "caption": "three", "tempo": 140},
    )
    measured, stated, elsewhere = chosen(path, folder).pieces
    music = decode(folder.split("test").read(0))
    assert measured.wanted.key == estimate_key(music) and measured.wanted.tempo_bpm is not None
    assert (stated.wanted.tempo_bpm, stated.wanted.key) == (77.0, 1)
    assert (elsewhere.wanted.tempo_bpm, elsewhere.wanted.key) == (140.0, None)
    assert all(piece.wanted.metre is None for piece in (measured, stated, elsewhere))
    assert {piece.num_bars for piece in (measured, stated, elsewhere)} == {4}


def test_lines_of_training_pieces_and_of_nothing_known_are_left_out_and_counted(
    folder, tmp_path
) -> None:
    good = [{"location": f"{n}.mid", "caption": "x", "tempo": 100 + n} for n in range(3)]
    path = lines(
        tmp_path / "c.jsonl",
        *good,
        {"location": source(folder, "train"), "caption": "seen", "tempo": 90},
        {"location": "unknown.mid", "caption": "neither tempo nor key"},
        {
            "location": "t.mid",
            "caption": "of MidiCaps' own training",
            "tempo": 9,
            "test_set": False,
        },
    )
    found = chosen(path, folder)
    assert [piece.text for piece in found.pieces] == ["x"] * 3
    assert sum("1 lines left out" in note for note in found.notes) == 3
    drawn = chosen(path, folder, num_pieces=2)
    assert len(drawn.pieces) == 2 and "2 of them drawn" in drawn.notes[-1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"caption": "x"}, "line 1: found caption; needed: `location`"),
        ({"location": "a.mid"}, "needed: `caption`"),
        ({"location": "a.mid", "caption": "x", "tempo": -3}, "tempo -3"),
        ({"location": "a.mid", "caption": "x", "key": "H dur"}, "key 'H dur'"),
        ({"location": "a.mid", "caption": "x", "tempo": 90}, "1 lines to judge"),
    ],
)
def test_bad_lines_are_refused_with_what_is_allowed(folder, tmp_path, entry, message) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(lines(tmp_path / "c.jsonl", entry), folder)


def test_every_key_is_read_in_every_spelling() -> None:
    assert [parse_key(key_name(index)) for index in range(NUM_KEYS)] == list(range(NUM_KEYS))
    assert parse_key("G#  minor") == parse_key("Ab minor") == 20


def test_the_five_numbers_are_shares_and_a_ratio(folder, tmp_path) -> None:
    entries = [{"location": f"{n}.mid", "caption": "x", "tempo": 5.0} for n in range(2)]
    pieces = chosen(lines(tmp_path / "c.jsonl", *entries), folder).pieces
    ids = cut_window(folder.split("test").read(0), 0, 4)

    class Parrot:
        def generate(self, requests):
            return [Generated(ids=ids) for _ in requests]

    row, written = judge_row(pieces, "text", "summaries", Parrot(), max_bars=4, seed=0)
    found = protocol_numbers(row, written, seed=0)
    assert list(found) == ["TB", "TBT", "CK", "CKD", "CR"]
    assert found["TB"].mean == 0 and found["TB"].n == 2
    assert found["CK"].n == 0, "no line states a key"
    assert found["CR"].mean > 1
