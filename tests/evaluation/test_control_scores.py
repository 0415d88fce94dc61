"""Scores of pieces made in the test: what is asked for is found, what is not said is not scored."""

import math

import numpy as np
import pytest

from meloformer.errors import ConfigError
from meloformer.evaluation.control_scores import (
    MEANING,
    METRICS,
    Heard,
    Wanted,
    hear,
    score,
    tempo_bin,
    wanted_of,
)
from meloformer.midi.grid import METRE_INDEX, TEMPOS_BPM
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.vocabulary import density_bin, length_bin
from tests.midi.pieces import canonical_piece

TEMPO_120 = int(np.flatnonzero(TEMPOS_BPM == 120.0)[0])
TEMPO_60 = int(np.flatnonzero(TEMPOS_BPM == 60.0)[0])


def e_minor(num_bars: int = 4) -> QuantisedPiece:
    """Strings and drums, 3/4 at 120: in each bar a chord for three quarters and one stroke."""
    chords = ([52, 55, 59], [57, 60, 64], [59, 63, 66], [52, 55, 59])
    notes = [(bar, 41, 0, pitch, 72, 66) for bar in range(num_bars) for pitch in chords[bar % 4]]
    notes += [(bar, 0, 24, 38, 6, 66) for bar in range(num_bars)]
    return canonical_piece([METRE_INDEX[3, 4]] * num_bars, [TEMPO_120] * num_bars, notes)


ATTRIBUTES = {
    "tempo_bpm": 120.0,
    "metre": "3/4",
    "key_index": 16,
    "bars": 4,
    "instruments": [0, 41],
    "density_bin": density_bin(4 / 3),
}


def test_a_piece_is_heard_as_it_was_made() -> None:
    heard = hear(e_minor(), length=3)
    assert heard == Heard(
        tempo_bpm=120.0,
        metre=METRE_INDEX[3, 4],
        key=16,
        instruments=frozenset({0, 41}),
        density=density_bin(4 / 3),
        length=3,
    )


def test_a_piece_scores_full_marks_against_its_own_caption() -> None:
    heard = hear(e_minor(), length=int(length_bin(4)))
    assert score(wanted_of(ATTRIBUTES), heard) == dict.fromkeys(METRICS, 1.0)


def test_every_metric_has_a_meaning_for_the_table() -> None:
    assert tuple(MEANING) == METRICS


@pytest.mark.parametrize(
    ("attribute", "field", "other", "metrics"),
    [
        ("tempo", "tempo_bpm", 60.0, ("tempo_bin", "tempo_near")),
        ("metre", "metre", "4/4", ("metre",)),
        ("key", "key_index", 0, ("key", "key_near")),
        ("density", "density_bin", 9, ("density", "density_near")),
        ("length", "bars", 200, ("length",)),
        ("instruments", "instruments", [7], ("instruments",)),
    ],
)
def test_another_wish_is_missed_and_counts_only_where_it_is_said(
    attribute: str, field: str, other: object, metrics: tuple[str, ...]
) -> None:
    heard = hear(e_minor(), length=int(length_bin(4)))
    wrong = {**ATTRIBUTES, field: other}
    everything = score(wanted_of(wrong), heard)
    assert {name for name, value in everything.items() if value == 0} == set(metrics)
    alone = score(wanted_of(wrong, [attribute]), heard)
    assert {name for name, value in alone.items() if not math.isnan(value)} == set(metrics)
    assert all(math.isnan(value) for value in score(wanted_of(wrong, []), heard).values())


def test_neighbours_of_a_bin_and_the_relative_key_are_near_and_not_equal() -> None:
    heard = hear(e_minor())
    near = score(Wanted(tempo_bpm=150, key=7, density=heard.density + 1), heard)
    for name in ("tempo", "key", "density"):
        exact = "tempo_bin" if name == "tempo" else name
        assert near[exact] == 0 and near[f"{name}_near"] == 1
    assert score(Wanted(tempo_bpm=161), heard)["tempo_near"] == 0
    assert score(Wanted(key=4), heard)["key_near"] == 0, "E major is no relative of E minor"


def test_tempo_bins_are_those_of_the_published_protocol() -> None:
    found = [tempo_bin(bpm) for bpm in (30, 40, 41, 60, 61, 70, 90, 91, 110, 140, 160, 210, 211)]
    assert found == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8]


def test_metre_and_tempo_are_those_of_most_of_the_time_and_not_of_most_bars() -> None:
    metres = [METRE_INDEX[1, 4]] * 3 + [METRE_INDEX[4, 4]]
    music = canonical_piece(metres, [TEMPO_120] * 3 + [TEMPO_60], [(3, 1, 0, 60, 24, 66)])
    assert hear(music).metre == METRE_INDEX[4, 4] and hear(music).tempo_bpm == 60.0


def test_drums_alone_miss_every_key() -> None:
    drums = canonical_piece([METRE_INDEX[4, 4]], [TEMPO_120], [(0, 0, 0, 36, 24, 66)])
    assert score(Wanted(key=0), hear(drums))["key_near"] == 0


def test_instruments_named_in_part_are_not_scored_as_if_they_were_all() -> None:
    wanted = wanted_of(ATTRIBUTES, ["key", {"instruments": [41]}])
    assert wanted.instruments is None and wanted.key == 16


def test_impossible_captions_are_refused() -> None:
    with pytest.raises(ConfigError, match="metre '0/7'"):
        wanted_of({"metre": "0/7"})
    with pytest.raises(ConfigError, match="key_index 24"):
        wanted_of({"key_index": 24})
