"""MusicXML score -> Piece: the part of the format that says what sounds, and when."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from meloformer.errors import MidiError
from meloformer.midi.grid import DENOMINATORS
from meloformer.midi.limits import MAX_TEMPO_BPM, MIN_TEMPO_BPM
from meloformer.midi.piece import Piece, Track, build_piece, build_track

TICKS_PER_QUARTER = 10_080  # every tuplet of 3, 5, 7 and 9 down to 128th notes is exact

# The earliest of these words in a part's name decides; programs count from 0. Scores seldom set
# programs, so the name comes first. Voices get the instruments that play with them in Bach's own
# performances (and the oboe for the altos, so that four voices stay four instruments).
_PROGRAM_OF_NAME = {
    "soprano": 40,
    "alto": 68,
    "tenor": 41,
    "bass": 42,
    "violin": 40,
    "viola": 41,
    "violoncello": 42,
    "cello": 42,
    "continuo": 19,
    "organ": 19,
    "timpani": 47,
    "trumpet": 56,
    "cornet": 56,
    "horn": 60,
    "oboe": 68,
    "flute": 73,
    "recorder": 74,
    "piano": 0,
}
# Longer words first, or "violoncello" would never be reached from within an alternation.
_NAME = re.compile("|".join(sorted(_PROGRAM_OF_NAME, key=len, reverse=True)))
_SEMITONE_OF_STEP = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_VELOCITY_OF_DYNAMIC = {
    "ppp": 26,
    "pp": 38,
    "p": 50,
    "mp": 62,
    "mf": 74,
    "f": 86,
    "ff": 98,
    "fff": 110,
}
_GRACE_TICKS = TICKS_PER_QUARTER // 8  # a grace note takes a 32nd from before its main note


@dataclass(kw_only=True)
class _Part:
    """State of one part while its measures are read in order."""

    divisions: float = 1.0
    transpose: int = 0
    velocity: int = _VELOCITY_OF_DYNAMIC["mf"]
    # onset, duration, pitch, velocity; a tied note grows in place.
    notes: list[list[int]] = field(default_factory=list)
    tied: dict[int, list[int]] = field(default_factory=dict)
    graces: list[list[int]] = field(default_factory=list)


def read_musicxml(path: Path) -> Piece:
    """Read a score as written: repeats once, ties joined, grace notes before the beat.

    Every measure is as long as its music is in most parts, so a pick-up or a measure that a
    repeat cuts in two becomes a metre of its own.

    Args:
        path: a .mxl, .xml or .musicxml file in partwise order.

    Raises:
        MidiError: not such a score, or a score without notes.
    """
    try:
        root = ElementTree.fromstring(_document(path))
        if root.tag != "score-partwise":
            raise MidiError("unreadable", f"{path}: root {root.tag}; allowed score-partwise")
        return _piece(root)
    except (
        OSError,
        zipfile.BadZipFile,
        ElementTree.ParseError,
        KeyError,
        ValueError,
        StopIteration,
    ) as error:
        raise MidiError("unreadable", f"{path}: {type(error).__name__}: {error}") from error


def num_parts(path: Path) -> int:
    """Parts that a score declares, without reading its music."""
    return _document(path).count(b"<score-part ")


def _document(path: Path) -> bytes:
    """The XML of a score, out of its zip archive where it is compressed."""
    if path.suffix.lower() != ".mxl":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        rootfile = next(element for element in container.iter() if element.tag.endswith("rootfile"))
        return archive.read(rootfile.attrib["full-path"])


def _piece(root: Element) -> Piece:
    parts = [_Part() for _ in root.iterfind("part")]
    columns = [part.findall("measure") for part in root.iterfind("part")]
    start = 0
    beats, beat_type = 4, 4
    tempos: list[tuple[int, float]] = []
    metres: list[tuple[int, int, int]] = []
    for number in range(max(map(len, columns), default=0)):
        measures = [column[number] for column in columns if number < len(column)]
        for measure in measures:
            for time in measure.iterfind("attributes/time"):
                beats = sum(int(n) for n in time.findtext("beats", "4").split("+"))
                beat_type = int(time.findtext("beat-type", "4"))
        ends = [
            _read_measure(part, column[number], start, tempos)
            for part, column in zip(parts, columns, strict=True)
            if number < len(column)
        ]
        length = _measure_ticks(ends) or TICKS_PER_QUARTER * 4 * beats // beat_type
        metre = _metre_of_ticks(length, beats, beat_type)
        if not metres or metre != metres[-1][1:]:
            metres.append((start, *metre))
        start += length
    tempo_rows = np.array(tempos, np.float64).reshape(-1, 2)
    metre_rows = np.array(metres, np.int64).reshape(-1, 3)
    return build_piece(
        ticks_per_quarter=TICKS_PER_QUARTER,
        tracks=list(_tracks(root, parts)),
        tempos=(tempo_rows[:, 0].astype(np.int64), tempo_rows[:, 1]),
        time_signatures=(metre_rows[:, 0], metre_rows[:, 1], metre_rows[:, 2]),
    )


def _measure_ticks(ends: list[float]) -> int:
    """How long a measure is, from how far each part reaches: as most say, else the longest.

    One part alone is often miswritten: a whole rest in a pick-up, a note missing or too many.

    >>> _measure_ticks([2.0, 4.0, 2.0]), _measure_ticks([2.0, 4.0]), _measure_ticks([0.0])
    (2, 4, 0)
    """
    votes = Counter(round(end) for end in ends if end > 0)
    return max(votes, key=lambda ticks: (votes[ticks], ticks), default=0)


def _metre_of_ticks(ticks: int, beats: int, beat_type: int) -> tuple[int, int]:
    """The written metre where it has this length, else the simplest that has.

    >>> _metre_of_ticks(TICKS_PER_QUARTER, 4, 4), _metre_of_ticks(TICKS_PER_QUARTER // 2, 3, 4)
    ((1, 4), (1, 8))
    """
    whole = 4 * TICKS_PER_QUARTER
    if ticks * beat_type == beats * whole:
        return beats, beat_type
    for denominator in DENOMINATORS:
        if denominator >= beat_type and ticks * denominator % whole == 0:
            return ticks * denominator // whole, denominator
    # A miswritten measure: the bar line is a little off, the notes are not.
    return max(1, round(ticks * DENOMINATORS[-1] / whole)), DENOMINATORS[-1]


def _read_measure(
    part: _Part, measure: Element, start: int, tempos: list[tuple[int, float]]
) -> float:
    """Read one measure of a part; returns how far its music reaches, in ticks."""
    cursor = previous = reach = 0.0
    for element in measure:
        match element.tag:
            case "note":
                duration = _ticks(part, element)
                is_chord = element.find("chord") is not None
                onset = previous if is_chord else cursor
                _read_note(part, element, start + round(onset), round(onset + duration) + start)
                if not is_chord:
                    previous, cursor = cursor, cursor + duration
            case "backup":
                cursor -= _ticks(part, element)
            case "forward":
                cursor += _ticks(part, element)
            case "attributes":
                part.divisions = float(element.findtext("divisions", str(part.divisions)))
                for transpose in element.iterfind("transpose"):
                    octaves = int(transpose.findtext("octave-change", "0"))
                    part.transpose = int(transpose.findtext("chromatic", "0")) + 12 * octaves
            case "direction" | "sound":
                _read_direction(part, element, start + round(cursor), tempos)
        reach = max(reach, cursor)
    return reach


def _ticks(part: _Part, element: Element) -> float:
    return float(element.findtext("duration", "0")) * TICKS_PER_QUARTER / part.divisions


def _read_note(part: _Part, element: Element, onset: int, end: int) -> None:
    if element.find("cue") is not None:
        return
    pitch = _pitch(element, part.transpose)
    is_chord = element.find("chord") is not None
    if element.find("grace") is not None:
        if pitch is not None:
            # The position among the graces; they are placed when their main note comes.
            position = len(part.graces) and part.graces[-1][0] + (not is_chord)
            part.graces.append([position, _GRACE_TICKS, pitch, part.velocity])
        return
    if not is_chord:
        _place_graces(part, onset)
    if pitch is None:
        return
    ties = {tie.get("type") for tie in element.iterfind("tie")}
    tied = part.tied.pop(pitch, None) if "stop" in ties else None
    if tied is not None and tied[0] + tied[1] == onset:
        note = tied
        note[1] = end - note[0]
    else:
        note = [onset, end - onset, pitch, part.velocity]
        part.notes.append(note)
    if "start" in ties:
        part.tied[pitch] = note


def _pitch(element: Element, transpose: int) -> int | None:
    pitch = element.find("pitch")
    if pitch is None:
        return None
    semitone = _SEMITONE_OF_STEP[pitch.findtext("step", "")]
    alter = round(float(pitch.findtext("alter", "0")))
    return 12 * (int(pitch.findtext("octave", "")) + 1) + semitone + alter + transpose


def _place_graces(part: _Part, onset: int) -> None:
    """Let the waiting grace notes end, one after another, where their main note starts."""
    if not part.graces:
        return
    num_positions = part.graces[-1][0] + 1
    for note in part.graces:
        note[0] = onset - (num_positions - note[0]) * _GRACE_TICKS
        if note[0] >= 0:
            part.notes.append(note)
    part.graces = []


def _read_direction(
    part: _Part, element: Element, onset: int, tempos: list[tuple[int, float]]
) -> None:
    for sound in element.iter("sound"):
        bpm = float(sound.get("tempo", "nan"))
        if MIN_TEMPO_BPM <= bpm <= MAX_TEMPO_BPM:
            tempos.append((onset, bpm))
    for dynamics in element.iter("dynamics"):
        for mark in dynamics:
            part.velocity = _VELOCITY_OF_DYNAMIC.get(mark.tag, part.velocity)


def _tracks(root: Element, parts: list[_Part]) -> Iterator[Track]:
    declared = {element.get("id"): element for element in root.iterfind("part-list/score-part")}
    for element, part in zip(root.iterfind("part"), parts, strict=True):
        declaration = declared.get(element.get("id"), element)
        name = " ".join(declaration.findtext("part-name", "").split())
        columns = np.array(part.notes, np.int64).reshape(-1, 4).T
        yield build_track(
            program=_program(name, declaration),
            is_drum=declaration.findtext("midi-instrument/midi-channel") == "10",
            name=name,
            columns=(columns[0], columns[1], columns[2], columns[3]),
        )


def _program(name: str, declaration: Element) -> int:
    word = _NAME.search(name.lower())
    if word is not None:
        return _PROGRAM_OF_NAME[word.group()]
    return int(declaration.findtext("midi-instrument/midi-program", "1")) - 1
