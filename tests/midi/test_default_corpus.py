import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ConfigError
from meloformer.midi.default_corpus import chorale_paths, default_corpus_paths, score_to_midi
from meloformer.midi.musicxml import TICKS_PER_QUARTER, read_musicxml
from meloformer.midi.quantise import quantise_counted
from meloformer.midi.read import read_midi
from tests.midi.judge import check_against_raw_notes

pytest.importorskip("music21", reason="carries the scores")


def path_of(name: str) -> Path:
    return next(path for path in default_corpus_paths() if path.as_posix().endswith(name))


def test_the_corpus_is_chorales_and_quartets_without_copies():
    paths = default_corpus_paths()
    chorales = [path for path in paths if path.parent.name == "bach"]
    assert len(chorales) > 400
    assert len({path.stem for path in chorales}) == len(chorales)
    assert {path.parents[1].name for path in paths} > {"haydn", "mozart", "beethoven"}
    assert paths == sorted(paths)


def test_finding_the_scores_does_not_import_music21(monkeypatch: pytest.MonkeyPatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "music21"]:
        monkeypatch.delitem(sys.modules, module)
    score_to_midi(default_corpus_paths()[0])
    assert "music21" not in sys.modules


def test_without_music21_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    monkeypatch.setattr("meloformer.midi.default_corpus.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="install"):
        default_corpus_paths()


@pytest.mark.parametrize(
    "name",
    [
        "bach/bwv269.mxl",  # a pick-up
        "bach/bwv67.4.xml",
        "bach/bwv119.9.mxl",  # more than four parts
        "haydn/opus74no1/movement1.mxl",  # repeats, tuplets, grace notes
        "mozart/k80/movement3.mxl",
    ],
)
def test_notes_and_measures_are_those_that_music21_reads(name: str):
    from music21 import converter

    piece = read_musicxml(path_of(name))
    stream = converter.parse(path_of(name), forceSource=True)
    assert len(stream.parts) == len(piece.tracks)
    for part, track in zip(stream.parts, piece.tracks, strict=True):
        expected = Counter(
            (round(note.getOffsetInHierarchy(stream) * TICKS_PER_QUARTER), pitch.midi)
            for note in part.recurse().notes
            if not note.duration.isGrace and (note.tie is None or note.tie.type == "start")
            for pitch in note.pitches
        )
        notes = track.notes
        found = Counter(zip(notes.onset_ticks.tolist(), notes.pitch.tolist(), strict=True))
        graces = found - expected
        assert not expected - found
        assert graces.total() <= len([n for n in part.recurse().notes if n.duration.isGrace])
    quantised, counts = quantise_counted(piece)
    lines = {round(float(m.offset) * 24) for m in stream.parts[0].getElementsByClass("Measure")}
    assert set(quantised.bar_start_steps[:-1].tolist()) <= lines
    assert counts.bars.bars_cut == 0


def test_the_same_score_gives_the_same_bytes():
    path = path_of("bach/bwv66.6.mxl")
    assert score_to_midi(path) == score_to_midi(path)


def test_four_voices_stay_four_instruments():
    piece = read_midi(score_to_midi(path_of("bach/bwv66.6.mxl")))
    assert len({track.program for track in piece.tracks}) == 4


@pytest.mark.parametrize("path", default_corpus_paths()[::40], ids=lambda path: path.stem)
def test_converted_scores_quantise_note_for_note(path: Path):
    check_against_raw_notes(read_midi(score_to_midi(path)))


@pytest.mark.slow
def test_every_score_converts_and_quantises_with_its_bar_lines():
    for path in default_corpus_paths():
        piece = read_midi(score_to_midi(path))
        quantised, counts = quantise_counted(piece)
        assert counts.bars.bar_lines_moved == 0, path
        assert np.all(np.diff(quantised.bar) >= 0), path


def test_the_chorales_are_the_four_part_ones_of_the_corpus() -> None:
    chorales = chorale_paths()
    assert set(chorales) < set(default_corpus_paths())
    assert len(chorales) > 350
    for path in chorales[::60]:
        tracks = read_midi(score_to_midi(path)).tracks
        assert sum(len(track.notes) > 0 for track in tracks) == 4
