import zipfile
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import MidiError
from meloformer.midi.bars import lay_bars
from meloformer.midi.grid import METRES
from meloformer.midi.musicxml import TICKS_PER_QUARTER, read_musicxml
from meloformer.midi.piece import Piece
from meloformer.midi.quantise import quantise


def score(*measures: str, name: str = "Violin", more: str = "") -> str:
    """One part in 4/4, two divisions a quarter."""
    attributes = (
        "<attributes><divisions>2</divisions>"
        "<time><beats>4</beats><beat-type>4</beat-type></time></attributes>"
    )
    body = "".join(f"<measure>{m}</measure>" for m in (attributes + measures[0], *measures[1:]))
    part = f'<score-part id="P1"><part-name>{name}</part-name>{more}</score-part>'
    return (
        f'<score-partwise><part-list>{part}</part-list><part id="P1">{body}</part></score-partwise>'
    )


def note(step: str, duration: int | None, *, octave: int = 4, inside: str = "") -> str:
    length = "" if duration is None else f"<duration>{duration}</duration>"
    pitch = f"<pitch><step>{step}</step><octave>{octave}</octave></pitch>"
    return f"<note>{inside}{pitch}{length}</note>"


def rest(duration: int) -> str:
    return f"<note><rest/><duration>{duration}</duration></note>"


def read(tmp_path: Path, xml: str) -> Piece:
    path = tmp_path / "score.xml"
    path.write_text(xml)
    return read_musicxml(path)


def rows(piece: Piece) -> list[tuple[float, float, int]]:
    """Onset and duration in quarters, pitch."""
    notes = piece.tracks[0].notes
    return sorted(
        zip(
            (notes.onset_ticks / TICKS_PER_QUARTER).tolist(),
            (notes.duration_ticks / TICKS_PER_QUARTER).tolist(),
            notes.pitch.tolist(),
            strict=True,
        )
    )


def metres_of(piece: Piece) -> list[tuple[int, int]]:
    signatures = piece.time_signatures
    return list(zip(signatures.numerator.tolist(), signatures.denominator.tolist(), strict=True))


def test_notes_rests_and_chords_follow_each_other(tmp_path: Path):
    xml = score(
        note("C", 2) + note("E", 2, inside="<chord/>") + rest(2) + note("G", 4), note("C", 8)
    )
    assert rows(read(tmp_path, xml)) == [(0, 1, 60), (0, 1, 64), (2, 2, 67), (4, 4, 60)]


def test_two_voices_start_together(tmp_path: Path):
    xml = score(note("C", 8) + "<backup><duration>8</duration></backup>" + rest(4) + note("E", 4))
    assert rows(read(tmp_path, xml)) == [(0, 4, 60), (2, 2, 64)]


def test_tied_notes_are_one_note_over_several_bar_lines(tmp_path: Path):
    start, stop = '<tie type="start"/>', '<tie type="stop"/>'
    xml = score(
        rest(6) + note("C", 2, inside=start),
        note("C", 8, inside=stop + start),
        note("C", 2, inside=stop) + note("C", 2) + rest(4),
    )
    assert rows(read(tmp_path, xml)) == [(3, 6, 60), (9, 1, 60)]


def test_grace_notes_come_before_their_main_note(tmp_path: Path):
    grace = "<grace/>"
    xml = score(
        note("D", None, inside=grace)  # nothing comes before the first beat
        + note("C", 4)
        + note("D", None, inside=grace)
        + note("E", None, inside=grace)
        + note("G", None, inside="<grace/><chord/>")
        + note("F", 4)
    )
    assert rows(read(tmp_path, xml)) == [
        (0, 2, 60),
        (1.75, 0.125, 62),
        (1.875, 0.125, 64),
        (1.875, 0.125, 67),
        (2, 2, 65),
    ]


def test_a_pick_up_and_a_cut_measure_become_metres(tmp_path: Path):
    piece = read(tmp_path, score(note("C", 2), note("C", 8), note("C", 3), note("C", 5)))
    assert metres_of(piece) == [(1, 4), (4, 4), (3, 8), (5, 8)]
    assert quantise(piece).num_bars == 4


def test_one_part_that_fills_a_pick_up_does_not_make_it_longer(tmp_path: Path):
    parts = "".join(
        f"<part id='P{n}'><measure>{first}</measure><measure>{note('C', 4)}</measure></part>"
        for n, first in enumerate([note("C", 1), rest(4), note("E", 1)])
    )
    piece = read(tmp_path, f"<score-partwise>{parts}</score-partwise>")
    assert metres_of(piece) == [(1, 4), (4, 4)]


def test_an_empty_measure_is_as_long_as_its_metre(tmp_path: Path):
    assert rows(read(tmp_path, score(note("C", 8), "", note("D", 8)))) == [(0, 4, 60), (8, 4, 62)]


def test_a_miswritten_measure_still_gives_a_metre_of_the_grid(tmp_path: Path):
    piece = read(
        tmp_path, score(note("C", 2) + "<forward><duration>0.3</duration></forward>", note("C", 8))
    )
    bar_metre, _ = lay_bars([0, 28], metres_of(piece), 30)
    assert METRES[bar_metre[1]] == (4, 4)


def test_tempo_and_dynamics_are_read(tmp_path: Path):
    loud = "<direction><direction-type><dynamics><ff/></dynamics></direction-type></direction>"
    piece = read(
        tmp_path,
        score(
            note("C", 4)
            + '<direction><direction-type/><sound tempo="90"/></direction>'
            + loud
            + note("C", 4)
        ),
    )
    assert (piece.tempos.bpm.tolist(), piece.tempos.onset_ticks.tolist()) == (
        [90],
        [2 * TICKS_PER_QUARTER],
    )
    soft, strong = piece.tracks[0].notes.velocity.tolist()
    assert soft < strong


@pytest.mark.parametrize(
    ("name", "midi_program", "expected"),
    [
        ("Violoncello", None, 42),
        ("Viola", "1", 41),
        ("Violin II.", "49", 40),
        ("Soprano&#xd;Oboe 1", "1", 40),
        ("Glockenspiel", "10", 9),
        ("Part", None, 0),
    ],
)
def test_the_name_of_a_part_comes_before_its_program(
    tmp_path: Path, name: str, midi_program: str | None, expected: int
):
    more = f"<midi-instrument><midi-program>{midi_program}</midi-program></midi-instrument>"
    xml = score(note("C", 8), name=name, more=more if midi_program else "")
    assert read(tmp_path, xml).tracks[0].program == expected


@pytest.mark.parametrize(
    "content", [b"", b"<html/>", b"<score-partwise><part", b"<score-timewise/>"]
)
def test_what_is_no_score_is_unreadable(tmp_path: Path, content: bytes):
    (tmp_path / "score.xml").write_bytes(content)
    with pytest.raises(MidiError, match="unreadable"):
        read_musicxml(tmp_path / "score.xml")


def test_an_archive_that_is_none_or_names_no_score_is_unreadable(tmp_path: Path):
    path = tmp_path / "score.mxl"
    path.write_bytes(b"PK nothing")
    with pytest.raises(MidiError, match="unreadable"):
        read_musicxml(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
    with pytest.raises(MidiError, match="unreadable"):
        read_musicxml(path)


def test_a_score_without_notes_is_refused(tmp_path: Path):
    with pytest.raises(MidiError, match="no_notes"):
        read(tmp_path, score(rest(8)))


def test_transposing_parts_sound_where_they_say(tmp_path: Path):
    transpose = "<attributes><transpose><chromatic>-2</chromatic></transpose></attributes>"
    piece = read(tmp_path, score(transpose + note("C", 8)))
    np.testing.assert_array_equal(piece.tracks[0].notes.pitch, [58])
