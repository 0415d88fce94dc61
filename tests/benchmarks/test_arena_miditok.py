"""MidiTok on our grid: what comes back, and what is lost."""

from dataclasses import replace

import numpy as np
import pytest

from meloformer.benchmarks import arena_miditok
from meloformer.benchmarks.arena_miditok import (
    BOS,
    CONTINUE,
    EOS,
    MidiTokEncoding,
    beat_resolutions,
)
from meloformer.benchmarks.arena_results import num_bars_kept, num_notes_kept
from meloformer.errors import ConfigError
from meloformer.midi.grid import DURATION_STEPS, METRE_INDEX, TEMPOS_BPM, VELOCITIES
from meloformer.midi.quantised import QuantisedPiece
from tests.tokens.pieces import piece_of, random_piece

needs_miditok = pytest.mark.skipif(
    arena_miditok.find_spec("miditok") is None, reason="needs the extra bench"
)


def encoding_of(kind, *pieces: QuantisedPiece) -> MidiTokEncoding:
    metres = {int(metre) for piece in pieces for metre in piece.bar_metre}
    return MidiTokEncoding(kind, metres, max(piece.num_bars for piece in pieces))


def every_value() -> QuantisedPiece:
    """Every duration, velocity and tempo of the grid, drums and the last program."""
    four, num_bars = METRE_INDEX[4, 4], len(DURATION_STEPS)
    return piece_of(
        [four] * num_bars,
        [bar % len(TEMPOS_BPM) for bar in range(num_bars)],
        [
            (bar, (0, 1, 128)[bar % 3], bar % 96, bar, steps, int(VELOCITIES[bar % 32]))
            for bar, steps in enumerate(DURATION_STEPS.tolist())
        ],
    )


@needs_miditok
@pytest.mark.parametrize("kind", ["remi", "octuple"])
def test_every_value_of_the_grid_comes_back(kind) -> None:
    music = every_value()
    encoding = encoding_of(kind, music)
    back = encoding.decode(encoding.encode(music))
    assert back is not None and num_notes_kept(music, back) == music.num_notes
    # Octuple's tempos change with the bar's first note, not with the bar.
    assert kind == "octuple" or back == music


@needs_miditok
def test_remi_gives_back_any_music_whole() -> None:
    """Metres that change, empty bars, notes across bar lines."""
    for seed in range(12):
        music = random_piece(seed, 1 + seed % 5, 1 + seed)
        encoding = encoding_of("remi", music)
        assert encoding.decode(encoding.encode(music)) == music, seed


@needs_miditok
def test_octuple_gives_back_all_notes_where_the_metre_stays() -> None:
    for seed in range(8):
        music = random_piece(seed, 1 + seed % 5, 4 + seed)
        music = replace(music, bar_metre=np.full_like(music.bar_metre, METRE_INDEX[12, 4]))
        encoding = encoding_of("octuple", music)
        back = encoding.decode(encoding.encode(music))
        assert num_notes_kept(music, back) == music.num_notes, seed


@needs_miditok
def test_what_octuple_loses_is_counted() -> None:
    """It says metre and tempo with notes: in bars without any they come too late."""
    four, three = METRE_INDEX[4, 4], METRE_INDEX[3, 4]
    note = (1, 0, 60, 24, 66)
    music = piece_of([four, three, three], [30, 31, 31], [(0, *note), (2, *note)])
    encoding = encoding_of("octuple", music)
    back = encoding.decode(encoding.encode(music))
    assert back is not None and back != music
    assert num_notes_kept(music, back) == 2
    assert num_bars_kept(music, back) == 2
    assert num_notes_kept(music, None) == num_bars_kept(music, None) == 0


@needs_miditok
@pytest.mark.parametrize("kind", ["remi", "octuple"])
def test_first_and_last_tokens_say_whether_a_piece_starts_and_ends(kind) -> None:
    music = random_piece(1, 2, 5)
    encoding = encoding_of(kind, music)
    whole, part = encoding.encode(music), encoding.encode(music, starts=False, ends=False)
    assert (whole[0] == BOS).all() and (whole[-1] == EOS).all()
    assert (part[0] == CONTINUE).all() and np.array_equal(part[1:], whole[1:-1])
    assert (whole[1:-1] > CONTINUE).all()
    assert (whole < np.array(encoding.vocab_sizes)).all()
    assert encoding.bars_begun(whole) == music.num_bars
    assert encoding.bars_begun(whole[:1]) == 0


@needs_miditok
@pytest.mark.parametrize("kind", ["remi", "octuple"])
def test_what_is_no_music_does_not_decode_and_raises_nothing(kind) -> None:
    encoding = encoding_of(kind, random_piece(1, 2, 5))
    nothing = np.full((1, len(encoding.vocab_sizes)), BOS)
    assert encoding.decode(nothing) is None
    random = np.random.default_rng(0)
    for _ in range(20):
        made_up = random.integers(0, encoding.vocab_sizes, (30, len(encoding.vocab_sizes)))
        back = encoding.decode(made_up)
        assert back is None or back.num_bars


@pytest.mark.parametrize("denominators", [[4], [2, 4], [4, 8, 16], [1, 2, 4, 8, 16, 32]])
def test_every_duration_falls_on_a_part_of_its_beat(denominators) -> None:
    """By trying all parts: floats would do, but steps times denominator stay whole."""
    ranges = beat_resolutions(denominators)
    assert all(a[1] == b[0] for a, b in zip(ranges, list(ranges)[1:], strict=False))
    for denominator in denominators:
        assert ranges[next(iter(ranges))] * denominator % 96 == 0, "so does every onset"
        for steps in DURATION_STEPS.tolist():
            beat, rest = divmod(steps * denominator, 96)
            fitting = [res for (a, b), res in ranges.items() if a <= beat < b]
            assert fitting or (beat, rest) == (max(ranges)[1], 0)
            assert all(rest * res % 96 == 0 for res in fitting)


def test_without_miditok_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(arena_miditok, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--systems remi needs the extra `bench`; install"):
        MidiTokEncoding("remi", [], 4)
