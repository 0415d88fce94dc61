from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.errors import ConfigError
from meloformer.midi.grid import DRUMS, METRE_INDEX
from meloformer.midi.quantised import QuantisedPiece
from meloformer.shards.content import KEY_LENGTH, note_key, split_of, tune_hash
from meloformer.shards.manifest import SPLITS, ShardSettings


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
