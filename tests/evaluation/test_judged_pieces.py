"""Pieces to be judged: every file is a piece or has a reason, whoever wrote it."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ConfigError, MidiError
from meloformer.evaluation.judged_pieces import (
    JudgedPiece,
    cut_bars,
    draw_held_out,
    held_out_pieces,
    judge_chunk,
    read_pieces,
)
from meloformer.evaluation.statistics_table import measure
from meloformer.midi.render import to_piece
from meloformer.midi.write import midi_bytes
from meloformer.shards.chunks import Chunk
from meloformer.shards.guard import FileLimits
from meloformer.shards.pool import DIED
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import open_source
from meloformer.tokens.hid import decode
from tests.evaluation.test_statistics import BAR, KNOWN, note, piece

OTHER = piece(*(note(bar, 0, 60 + bar, BAR) for bar in range(6)))


def in_this_process(task, jobs, *, one_by_one=False):
    """An engine without workers."""
    return ((job, task(job)) for job in jobs)


def write_folder(folder: Path) -> Path:
    """Two pieces, of which one is in an archive, and three files that are none."""
    folder.mkdir(parents=True)
    (folder / "a.mid").write_bytes(midi_bytes(to_piece(KNOWN)))
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.writestr("b.mid", midi_bytes(to_piece(OTHER)))
    (folder / "c.mid").write_bytes(b"")
    (folder / "d.mid").write_bytes(b"MThd no more")
    (folder / "e.mid").write_bytes(midi_bytes(to_piece(KNOWN))[:40])
    (folder / "notes.txt").write_text("no music")
    return folder


def test_every_file_is_a_piece_or_has_a_reason(tmp_path) -> None:
    folder = write_folder(tmp_path / "mixed")
    found = read_pieces(open_source(str(folder)), "mixed", run=in_this_process)
    assert sorted(one.name for one in found.pieces) == ["a.mid", "more.zip/b.mid"]
    assert sorted(one.name for one in found.unread) == ["c.mid", "d.mid", "e.mid"]
    assert found.num_files == 5 and sum(found.reasons.values()) == 3
    by_name = {one.name: one for one in found.pieces}
    assert by_name["a.mid"].music == KNOWN and by_name["more.zip/b.mid"].music == OTHER
    np.testing.assert_equal(by_name["a.mid"].values, measure(KNOWN))


def test_a_worker_that_dies_costs_the_file_that_it_died_of(tmp_path) -> None:
    source = open_source(str(write_folder(tmp_path / "mixed")))

    def deadly(task, jobs, *, one_by_one=False):
        for job in jobs:
            dies = any(file.name == "a.mid" for file in job.files)
            yield job, DIED if dies else task(job)

    found = read_pieces(source, "mixed", run=deadly)
    assert [one.name for one in found.pieces] == ["more.zip/b.mid"]
    assert found.reasons["crashed"] == 1 and found.num_files == 5


def test_a_folder_without_a_readable_file_is_refused_with_the_reasons(tmp_path) -> None:
    (tmp_path / "c.mid").write_bytes(b"MThd")
    with pytest.raises(ConfigError, match=r"none of its 1 MIDI files can be read \(1 "):
        read_pieces(open_source(str(tmp_path)), "bad", run=in_this_process)


def test_first_bars_are_those_of_the_piece_up_to_their_last_note() -> None:
    cut = cut_bars(KNOWN, 3)
    assert cut.num_bars == 2, "bar 2 holds no onset"
    assert cut.num_notes == 5 and cut.bar.max() == 1
    assert cut_bars(KNOWN, 4) == KNOWN == cut_bars(KNOWN, 99)
    late = piece(note(4, 0, 60))
    with pytest.raises(MidiError, match="silent_start"):
        cut_bars(late, 4)


class _Slow:
    name, facts = "slow.mid", {}

    def read(self) -> bytes:
        while True:
            pass


def test_a_file_that_takes_too_long_is_given_up() -> None:
    limits = FileLimits(file_seconds=0.05)
    (found,) = judge_chunk(Chunk(0, (_Slow(),)), first_bars=None, limits=limits)
    assert not isinstance(found, JudgedPiece) and found.reason == "timeout"


def test_held_out_pieces_are_drawn_by_key_and_never_from_training(chorale_shards) -> None:
    folder = ShardFolder.open(chorale_shards)
    few, all_of_them = draw_held_out(folder, 3, seed=0), draw_held_out(folder, 10**6, seed=0)
    assert [one.key for one in few] == [one.key for one in all_of_them][:3]
    keys = [one.key for one in all_of_them]
    assert set(keys) == {*folder.split("test").keys(), *folder.split("valid").keys()}
    assert not set(keys) & set(folder.split("train").keys())
    assert [one.key for one in draw_held_out(folder, 10**6, seed=1)] != keys
    assert {one.split for one in few} == {"test"}, "which was looked at least"
    found = held_out_pieces(few, "held out", 4)
    for one, judged in zip(few, found.pieces, strict=True):
        assert judged.name == one.key
        assert judged.music == cut_bars(decode(one.index.read(one.piece)), 4)


def test_values_can_be_written_as_json() -> None:
    json.dumps(measure(KNOWN), allow_nan=True)
