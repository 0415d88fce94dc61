from collections import Counter
from dataclasses import fields
from fractions import Fraction
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import ConfigError, MidiError
from meloformer.midi.filters import (
    FilterSettings,
    bar_seconds,
    check_quality,
    off_grid_share,
    off_grid_shares,
    quality_errors,
)
from meloformer.midi.grid import DRUMS, METRE_INDEX, TEMPOS_BPM
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.limits import MAX_QUARTERS
from meloformer.midi.piece import Piece, build_piece, build_track
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from tests.midi.hand_written import midi_file, note, program, tempo
from tests.midi.pieces import canonical_piece, canonical_pieces

COMMON = METRE_INDEX[4, 4]
AT_120 = int(np.flatnonzero(TEMPOS_BPM == 120.0)[0])
SIXTEENTH = 6
HI_HAT, KICK, SNARE = 42, 36, 38


def piece_of(notes: list[tuple[int, int, int, int]], num_bars: int) -> QuantisedPiece:
    """A piece of 4/4 at 120 from (bar, instrument, onset in steps, pitch)."""
    rows = [(*row, SIXTEENTH, 66) for row in notes]
    return canonical_piece([COMMON] * num_bars, [AT_120] * num_bars, rows)


def scale(num_bars: int = 8, first_bar: int = 0, instrument: int = 1) -> list:
    """Eight notes of a scale in each bar."""
    bars = range(first_bar, num_bars)
    return [(bar, instrument, 12 * step, 60 + step) for bar, step in product(bars, range(8))]


def sixteenths(instrument: int, pitches: list[int], num_bars: int = 8) -> list:
    """A note on every sixteenth of every bar, the pitches by turns."""
    return [
        (bar, instrument, SIXTEENTH * step, pitches[step % len(pitches)])
        for bar, step in product(range(num_bars), range(16))
    ]


def check(notes: list, num_bars: int = 8, **settings: float) -> str:
    """The reason for which a piece is refused, "" where it is kept."""
    try:
        check_quality(piece_of(notes, num_bars), FilterSettings(**settings))
    except MidiError as refusal:
        return refusal.reason
    return ""


@pytest.mark.parametrize(
    "notes",
    [
        scale(),
        sixteenths(1, [48, 60]),
        sixteenths(1, [60, 62, 64, 65]),
        sixteenths(34, [40]) + scale(),
        sixteenths(DRUMS, [HI_HAT]) + [(bar, DRUMS, 0, KICK) for bar in range(8)],
        sixteenths(DRUMS, [KICK, HI_HAT, SNARE, HI_HAT]),
    ],
    ids=["scale", "octaves", "run", "bass and tune", "hi-hat and a kick a bar", "drums"],
)
def test_steady_music_passes(notes: list):
    assert check(notes) == ""


@pytest.mark.parametrize(
    ("reason", "notes", "num_bars", "edge"),
    [
        ("too_few_bars", scale(3), 3, {"min_bars": 3}),
        (
            "too_many_bars",
            [*scale(), (2048, 1, 0, 70)],
            2049,
            {"max_bars": 2049, "max_seconds": 5000, "max_empty_share": 1},
        ),
        ("too_few_notes", [(bar, 1, 0, 60 + bar) for bar in range(15)], 15, {"min_notes": 15}),
        ("too_few_pitches", sixteenths(1, [60]), 8, {"min_pitches": 1, "max_repeat_share": 1}),
        (
            "too_few_pitches",
            sixteenths(DRUMS, [HI_HAT]),
            8,
            {"min_pitches": 1, "max_repeat_share": 1},
        ),
        (
            "one_note_repeated",
            [*sixteenths(1, [60]), (0, 1, 1, 61)],
            8,
            {"max_repeat_share": 128 / 129},
        ),
        (
            "too_many_tracks",
            [n for p in range(1, 34) for n in scale(instrument=p)],
            8,
            {"max_tracks": 33},
        ),
        (
            "too_long_to_play",
            [*scale(), (1800, 1, 0, 70)],
            1801,
            {"max_seconds": 3602, "max_empty_share": 1},
        ),
        (
            "empty_bars",
            [*scale(1), *scale(4, 3), *scale(8, 7)],
            8,
            {"max_empty_share": 5 / 8},
        ),
        (
            "silent_start",
            [(15, 1, 12, 70), *scale(40, 16)],
            40,
            {"max_silence_seconds": 30.25},
        ),
    ],
)
def test_each_predicate_refuses_with_its_reason_and_can_be_set(
    reason: str, notes: list, num_bars: int, edge: dict
):
    assert check(notes, num_bars) == reason
    assert check(notes, num_bars, **edge) == ""


def test_a_piece_too_short_in_seconds_is_refused():
    fastest = len(TEMPOS_BPM) - 1
    notes = [(bar, 1, onset, 60 + onset, 6, 66) for bar in range(4) for onset in (0, 6, 12, 18)]
    quantised = canonical_piece([METRE_INDEX[2, 4]] * 4, [fastest] * 4, notes)
    seconds = 4 * 2 * 60 / TEMPOS_BPM[fastest]
    np.testing.assert_allclose(bar_seconds(quantised).sum(), seconds)
    with pytest.raises(MidiError, match=r"too_short: .* \(--min_seconds\)"):
        check_quality(quantised, FilterSettings())
    check_quality(quantised, FilterSettings(min_seconds=seconds - 1e-9))


def test_a_refusal_says_what_was_found_what_is_allowed_and_which_flag_decides():
    with pytest.raises(MidiError) as refusal:
        check_quality(piece_of(scale(3), 3), FilterSettings())
    assert refusal.value.detail == "3 bars; allowed from 4 (--min_bars)"


# Few of the pieces that hypothesis draws pass; these let each predicate refuse some and keep some.
DRAWN = FilterSettings(
    min_bars=2,
    max_bars=7,
    min_notes=4,
    min_pitches=2,
    min_seconds=2.0,
    max_seconds=30.0,
    max_empty_share=0.4,
    max_repeat_share=0.3,
    max_silence_seconds=1.0,
    max_tracks=4,
)


def refusal_of(quantised: QuantisedPiece, allowed: FilterSettings) -> tuple[str, str] | None:
    try:
        check_quality(quantised, allowed)
    except MidiError as refusal:
        return refusal.reason, refusal.detail
    return None


@settings(max_examples=40)
@given(st.lists(canonical_pieces(), min_size=1, max_size=5), st.randoms())
def test_pieces_taken_together_are_refused_as_each_alone(
    several: list[QuantisedPiece], random: Random
):
    random.shuffle(several)
    for allowed in (DRAWN, FilterSettings()):
        together = quality_errors(JoinedPieces.join(several), allowed)
        found = [None if error is None else (error.reason, error.detail) for error in together]
        assert found == [refusal_of(piece, allowed) for piece in several]


@given(canonical_pieces())
@settings(max_examples=100)
def test_the_first_predicate_that_fails_names_the_reason(quantised: QuantisedPiece):
    """Against a plain loop over notes."""
    notes = list(
        zip(
            quantised.bar.tolist(),
            quantised.instrument.tolist(),
            quantised.onset_steps.tolist(),
            quantised.pitch.tolist(),
            strict=True,
        )
    )
    lengths = bar_seconds(quantised).tolist()
    bar, _, onset, _ = min(notes, key=lambda note: (note[0], note[2]))
    per_step = 60 / 24 / TEMPOS_BPM[quantised.bar_tempo[bar]]
    same = Counter((instrument, pitch) for _, instrument, _, pitch in notes)
    wrong = {
        "too_few_bars": len(lengths) < 2,
        "too_many_bars": len(lengths) > 7,
        "too_few_notes": len(notes) < 4,
        "too_few_pitches": len({note[3] for note in notes}) < 2,
        "one_note_repeated": max(same.values()) / len(notes) > 0.3,
        "too_many_tracks": len({note[1] for note in notes}) > 4,
        "too_short": sum(lengths) < 2,
        "too_long_to_play": sum(lengths) > 30,
        "empty_bars": 1 - len({note[0] for note in notes}) / len(lengths) > 0.4,
        "silent_start": sum(lengths[:bar]) + onset * per_step > 1,
    }
    expected = next((reason for reason, fails in wrong.items() if fails), None)
    found = refusal_of(quantised, DRAWN)
    assert (found[0] if found else None) == expected


def test_tracks_of_one_program_count_once():
    tracks = [[program(5, c), note(0, 100, 60 + c, channel=c)] for c in range(9)]
    quantised = quantise(read_midi(midi_file(*tracks)))
    lenient = {"min_bars": 1, "min_notes": 1, "min_seconds": 0}
    check_quality(quantised, FilterSettings(max_tracks=1, **lenient))


@pytest.mark.parametrize(
    "settings",
    [
        {"min_bars": -1},
        {"min_bars": 5, "max_bars": 4},
        {"max_bars": 10**6},
        {"min_seconds": float("nan")},
        {"max_seconds": float("inf")},
        {"min_seconds": 10.0, "max_seconds": 5.0},
        {"max_empty_share": 1.5},
        {"max_repeat_share": -0.1},
        {"max_silence_seconds": -1.0},
        {"max_tracks": 0},
        {"min_notes": -3},
        {"min_pitches": 129},
    ],
)
def test_contradictory_settings_are_refused_by_the_name_of_the_flag(settings: dict):
    with pytest.raises(ConfigError, match=f"--{next(iter(settings))}"):
        FilterSettings(**settings)


def test_every_setting_has_bounds():
    for setting in fields(FilterSettings):
        with pytest.raises(ConfigError, match=f"--{setting.name}"):
            FilterSettings(**{setting.name: -1})


@pytest.mark.parametrize(
    ("ticks", "share"),
    [([0, 480, 600, 640], 0.0), ([5, 475, 15], 0.0), ([6, 474, 10, 16], 0.75), ([10], 1.0)],
    ids=["on the grid", "at most a quarter of a step off", "just beyond", "half a step off"],
)
def test_onsets_over_a_quarter_of_a_step_off_the_grid_are_counted(ticks: list, share: float):
    data = midi_file([note(tick, 30, 60 + n) for n, tick in enumerate(ticks)])
    assert off_grid_share(read_midi(data)) == share


def piece_at(onset_ticks: list[int], ticks_per_quarter: int) -> Piece:
    """One pitch at each onset."""
    at = np.array(onset_ticks)
    columns = at, np.ones(len(at), int), np.full(len(at), 60), np.full(len(at), 64)
    nothing = np.zeros(0, int)
    return build_piece(
        ticks_per_quarter=ticks_per_quarter,
        tracks=[build_track(program=0, is_drum=False, name="", columns=columns)],
        tempos=(nothing, nothing),
        time_signatures=(nothing, nothing, nothing),
    )


def off_grid_exactly(piece: Piece) -> float:
    """In fractions."""
    steps = [Fraction(24 * t, piece.ticks_per_quarter) for t in piece.notes.onset_ticks.tolist()]
    return sum(abs(step - round(step)) > Fraction(1, 4) for step in steps) / len(steps)


def test_no_rounding_decides_which_onsets_stand_off_the_grid():
    random = np.random.default_rng(0)
    pieces = []
    for ticks_per_quarter in (1, 47, 96, 480, 32_752, 32_749, 32_767):
        last = MAX_QUARTERS * ticks_per_quarter
        onsets = random.integers(0, last, 400).tolist()
        # A quarter of a step off, and a tick to either side.
        quarters = (
            random.integers(0, 4 * 24 * MAX_QUARTERS, 400) * ticks_per_quarter // 96
        ).tolist()
        onsets += [tick + more for tick in quarters for more in (0, 1)]
        pieces.append(piece_at(onsets, ticks_per_quarter))
    assert off_grid_shares(pieces).tolist() == [off_grid_exactly(piece) for piece in pieces]
    assert off_grid_shares(pieces).tolist() == [off_grid_share(piece) for piece in pieces]


def test_onsets_off_the_grid_refuse_nothing():
    notes = [note(31 * n + 10, 20, 60 + n % 12) for n in range(400)]
    piece = read_midi(midi_file([tempo(0, 500_000), *notes]))
    assert off_grid_share(piece) > 0.4
    check_quality(quantise(piece), FilterSettings())


# Of all real files, how many the defaults may refuse: jingles of two bars, a metronome's click, a
# score that stops being one half way.
MAX_REFUSED_SHARE = 0.01


@pytest.mark.slow
def test_nearly_all_real_music_passes_the_defaults(archived_midi):
    reasons: dict[str, str] = {}
    num_read = 0
    for corpus in ("freedoom", "js_fakes", "mma_grooves", "nottingham", "openmsx", "pop909"):
        for name, data in archived_midi(Path("corpora") / f"{corpus}.tar.gz"):
            num_read += 1
            try:
                check_quality(quantise(read_midi(data)), FilterSettings())
            except MidiError as refusal:
                reasons[name] = refusal.reason
    assert num_read > 0
    assert len(reasons) <= MAX_REFUSED_SHARE * num_read, reasons
