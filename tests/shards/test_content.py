from dataclasses import Field, fields, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import ConfigError
from meloformer.midi.grid import (
    DRUMS,
    DURATION_STEPS,
    MAX_BAR_STEPS,
    METRE_INDEX,
    METRES,
    NUM_INSTRUMENTS,
    TEMPOS_BPM,
    VELOCITIES,
)
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.limits import MAX_BARS
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.shards.content import (
    KEY_LENGTH,
    note_key,
    note_keys,
    split_of,
    tune_hash,
    tune_hashes,
)
from meloformer.shards.manifest import SPLITS, ShardSettings
from tests.midi.pieces import canonical_piece, canonical_pieces

# All values that each column of a piece may hold.
TABLES = {
    "bar_metre": range(len(METRES)),
    "bar_tempo": range(len(TEMPOS_BPM)),
    "bar": range(MAX_BARS),
    "instrument": range(NUM_INSTRUMENTS),
    "onset_steps": range(MAX_BAR_STEPS),
    "pitch": range(128),
    "duration_steps": DURATION_STEPS.tolist(),
    "velocity": VELOCITIES.tolist(),
}


def test_every_field_of_a_piece_counts_for_its_key(chorale: QuantisedPiece) -> None:
    key = note_key(chorale)
    assert len(key) == KEY_LENGTH
    assert "." not in key
    for field in fields(QuantisedPiece):
        values = getattr(chorale, field.name).copy()
        values[0] += 1
        assert note_key(replace(chorale, **{field.name: values})) != key, field.name


def test_the_key_does_not_depend_on_how_the_arrays_lie_in_memory(chorale: QuantisedPiece) -> None:
    wide = {f.name: np.repeat(getattr(chorale, f.name), 2)[::2] for f in fields(QuantisedPiece)}
    assert note_key(replace(chorale, **wide)) == note_key(chorale)


@settings(max_examples=40)
@given(canonical_pieces(), canonical_pieces())
def test_pieces_have_one_key_where_they_are_equal_and_only_there(
    first: QuantisedPiece, second: QuantisedPiece
) -> None:
    assert (note_key(first) == note_key(second)) == (first == second)


@given(canonical_pieces(), st.sampled_from(fields(QuantisedPiece)), st.randoms())
def test_any_changed_value_makes_another_key(
    piece: QuantisedPiece, field: Field, random: Random
) -> None:
    values = getattr(piece, field.name).copy()
    table = TABLES[field.name]
    at = random.randrange(len(values))
    values[at] = random.choice([value for value in table if value != values[at]])
    assert note_key(replace(piece, **{field.name: values})) != note_key(piece)


def test_the_largest_values_do_not_run_into_each_other() -> None:
    most = {name: np.array([max(table)], np.int32) for name, table in TABLES.items()}
    least = {name: np.array([min(table)], np.int32) for name, table in TABLES.items()}
    keys = {note_key(QuantisedPiece(**most)), note_key(QuantisedPiece(**least))}
    for name in TABLES:
        keys.add(note_key(QuantisedPiece(**{**most, name: least[name]})))
        keys.add(note_key(QuantisedPiece(**{**least, name: most[name]})))
    assert len(keys) == 2 + 2 * len(TABLES)


@settings(max_examples=30)
@given(st.lists(canonical_pieces(), min_size=1, max_size=5), st.randoms())
def test_pieces_taken_together_have_the_keys_and_tunes_that_they_have_alone(
    several: list[QuantisedPiece], random: Random
) -> None:
    random.shuffle(several)
    joined = JoinedPieces.join(several)
    assert note_keys(joined) == [note_key(piece) for piece in several]
    assert tune_hashes(joined) == [tune_hash(piece) for piece in several]


def test_chorales_taken_together_have_the_keys_and_tunes_that_they_have_alone(
    chorales: list[bytes],
) -> None:
    pieces = [quantise(read_midi(data)) for data in chorales]
    joined = JoinedPieces.join(pieces)
    assert note_keys(joined) == [note_key(piece) for piece in pieces]
    assert tune_hashes(joined) == [tune_hash(piece) for piece in pieces]
    assert len(set(tune_hashes(joined))) == len(pieces)


def test_tunes_beyond_a_time_line_of_32_bits_are_those_of_each_piece() -> None:
    metre, tempo = METRE_INDEX[12, 4], 0
    longest = canonical_piece(
        [metre] * MAX_BARS,
        [tempo] * MAX_BARS,
        [
            (bar, 1, MAX_BAR_STEPS - 1 - bar % 5, 60 + bar % 7, 1, 66)
            for bar in range(0, MAX_BARS, 97)
        ]
        + [(MAX_BARS - 1, 1, 0, 60, 1, 66)],
    )
    other = replace(longest, pitch=longest.pitch[::-1])
    several = [longest, other] * 8
    joined = JoinedPieces.join(several)
    assert int(joined.music.bar_start_steps[-1]) > 2**24
    assert tune_hashes(joined) == [tune_hash(longest), tune_hash(other)] * 8
    assert note_keys(joined) == [note_key(longest), note_key(other)] * 8


def test_tunes_are_the_same_on_every_machine() -> None:
    notes = [
        (bar, 1, 12 * step, 60 + (bar * step) % 9, 12, 66) for bar in range(4) for step in range(8)
    ]
    piece = canonical_piece([METRE_INDEX[4, 4]] * 4, [40] * 4, notes)
    assert f"{tune_hash(piece):016x}" == "318c220692d49f70"
    assert note_key(piece) == "337699b9c3f956ca85f6a157"


@pytest.mark.parametrize("semitones", [-5, 1, 7])
def test_a_transposed_copy_has_the_same_tune_and_another_key(
    chorale: QuantisedPiece, semitones: int
) -> None:
    copy = replace(chorale, pitch=chorale.pitch + semitones)
    assert tune_hash(copy) == tune_hash(chorale)
    assert note_key(copy) != note_key(chorale)


@pytest.mark.parametrize("field", ["bar_tempo", "velocity", "duration_steps", "instrument"])
def test_tempo_loudness_length_and_instrument_do_not_make_another_tune(
    chorale: QuantisedPiece, field: str
) -> None:
    copy = replace(chorale, **{field: np.full_like(getattr(chorale, field), 2)})
    assert tune_hash(copy) == tune_hash(chorale)


def test_an_added_drum_track_does_not_make_another_tune(chorale: QuantisedPiece) -> None:
    drums = replace(chorale, instrument=np.full_like(chorale.instrument, DRUMS), pitch=chorale.bar)
    both = {
        f.name: np.concatenate([getattr(chorale, f.name), getattr(drums, f.name)])
        for f in fields(QuantisedPiece)
        if not f.name.startswith("bar_")
    }
    assert tune_hash(replace(chorale, **both)) == tune_hash(chorale)


def test_silence_before_it_does_not_make_another_tune(chorale: QuantisedPiece) -> None:
    later = replace(
        chorale,
        bar=chorale.bar + 2,
        bar_metre=np.concatenate([[METRE_INDEX[3, 4]] * 2, chorale.bar_metre]),
        bar_tempo=np.concatenate([chorale.bar_tempo[:2], chorale.bar_tempo]),
    )
    assert tune_hash(later) == tune_hash(chorale)


def test_one_note_a_semitone_off_makes_another_tune(chorale: QuantisedPiece) -> None:
    pitch = chorale.pitch.copy()
    pitch[10] += 1
    assert tune_hash(replace(chorale, pitch=pitch)) != tune_hash(chorale)


def test_drums_alone_are_told_apart_by_their_drums(chorale: QuantisedPiece) -> None:
    drums = replace(chorale, instrument=np.full_like(chorale.instrument, DRUMS))
    assert tune_hash(replace(drums, pitch=drums.pitch + 1)) != tune_hash(drums)


def test_a_piece_of_one_note_has_a_tune(chorale: QuantisedPiece) -> None:
    one = {
        f.name: getattr(chorale, f.name)[:1]
        for f in fields(QuantisedPiece)
        if not f.name.startswith("bar_")
    }
    assert tune_hash(replace(chorale, **one)) >= 0


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(0, 2**64 - 1))
def test_another_tune_never_moves_one_to_another_split(tunes: list[int], other: int) -> None:
    alone = split_of(np.array(tunes, np.uint64), ShardSettings())
    together = split_of(np.array([other, *tunes], np.uint64), ShardSettings())
    assert np.array_equal(alone, together[1:])


def test_splits_have_their_shares() -> None:
    tunes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    settings = ShardSettings(valid_share=0.2, test_share=0.1)
    shares = np.bincount(split_of(tunes, settings), minlength=len(SPLITS)) / len(tunes)
    assert np.allclose(shares, [0.7, 0.2, 0.1], atol=0.005)


@pytest.mark.parametrize(
    "wrong",
    [
        {"valid_share": -0.1},
        {"test_share": 1.0},
        {"valid_share": 0.6, "test_share": 0.4},
        {"pieces_per_shard": 0},
        {"bytes_per_shard": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="--"):
        ShardSettings(**wrong)
