"""What a user may ask for: what the grammar keeps, and what the prefix says of it."""

import numpy as np
import pytest
import torch

from meloformer.errors import ConfigError, GenerationError, MeloFormerError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.text import Order
from meloformer.midi import grid
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import Attributes, read_prefix
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import NO_CHORD
from tests.layouts import tiny_config
from tests.tokens.wished import broken_wishes


def test_without_drums_all_others_may_play_and_the_prefix_says_nothing_of_it() -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=2)).eval()
    controls = ControlConfig(bars=3, drums=False)
    assert np.array_equal(controls.prefix(), ControlConfig(bars=3).prefix())
    assert controls.describe() == "3 bars, no drums"
    pieces = generate(model, controls, SamplingConfig(top_p=1.0), num_samples=8, seed=1)
    playing = {index for ids in pieces for index in decode(ids).instrument.tolist()}
    assert grid.DRUMS not in playing and len(playing) > 1
    some = ControlConfig(bars=3, drums=False, instruments=("0",))
    assert some.instrument_indices == (1,) and some.describe() == "3 bars, Acoustic Grand Piano (0)"


def test_drums_that_are_listed_and_forbidden_are_refused_in_one_line() -> None:
    said = "--instruments drums with --no_drums: allowed: one of them"
    with pytest.raises(GenerationError, match=said) as refusal:
        ControlConfig(instruments=("0", "drums"), drums=False)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("metre", ["²/4", "4/" + "4" * 5000, "4", "4/4/4", "-4/4", "4/ 4", ""])
def test_a_time_signature_that_is_none_is_refused(metre: str) -> None:
    with pytest.raises(GenerationError, match="allowed are N/D"):
        ControlConfig(bars=1, time_signature=metre)


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    """Its taste is by chance, and far from what anybody wishes for."""
    torch.manual_seed(0)
    return MuseFormer(tiny_config(num_layers=2)).eval()


@pytest.mark.parametrize(
    "wish",
    [
        {"bars": 3, "chords": ("Cmaj Amin",), "notes_per_bar": "0-4"},
        {"bars": 3, "instruments": ("drums", "0", "32"), "notes_per_bar": "0-3"},
        {"bars": 2, "num_instruments": 3, "notes_per_bar": "2-5"},
        {"bars": 3, "instruments": ("0", "1", "2"), "num_instruments": 2, "notes_per_bar": "1-"},
        {"bars": 3, "enter": ("drums:2", "33:0"), "time_signature": "1/4"},
        {"bars": 2, "key": "A minor", "scale_only": True, "instruments": ("drums", "5")},
        {"bars": 2, "instruments": ("33",), "pitch_range": ("33:28-30",), "tempo": 90.0},
    ],
)
def test_a_random_model_writes_what_was_asked_for(model: MuseFormer, wish: dict) -> None:
    controls = ControlConfig(**wish)
    for temperature in (1.0, 8.0):
        sampling = SamplingConfig(temperature=temperature, top_p=1.0)
        for ids in generate(model, controls, sampling, num_samples=4, seed=1):
            assert not broken_wishes(ids, controls.wishes)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ({"chords": ("C", "N")}, "chords", (0, NO_CHORD)),
        ({"instruments": ("0", "drums")}, "playing", (0, 1)),
        ({"instruments": ("0", "drums")}, "instruments", (0, 1)),
        ({"instruments": ("0", "1", "2"), "num_instruments": 2}, "playing", ()),
        ({"instruments": ("0", "1"), "enter": ("0:3",)}, "playing", (2,)),
        ({"enter": ("0:3", "drums:1")}, "entries", ((1, 3), (0, 1))),
        ({"enter": ("0:3",)}, "instruments", None),
        ({"notes_per_bar": "2-12"}, "most_notes", 12),
        ({"pitch_range": ("33:28-52",)}, "ranges", ((34, 28, 52),)),
        ({"key": "D major", "scale_only": True}, "scale", (2, 4, 6, 7, 9, 11, 1)),
        ({"key": "A minor", "scale_only": True}, "scale", (9, 11, 0, 2, 4, 5, 7)),
        ({"key": "A minor"}, "scale", None),
        ({"density": 2.0}, "are_kept_by_kind", True),
    ],
)
def test_a_flag_is_this_wish(flags: dict, field: str, value: object) -> None:
    assert getattr(ControlConfig(**flags).wishes, field) == value


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"instruments": ("0", "drums")}, (0, 1)),
        ({"instruments": ("0", "1", "2"), "num_instruments": 2}, ()),
        ({"instruments": ("0", "1"), "num_instruments": 2, "enter": ("0:1",)}, (1, 2)),
        ({"enter": ("0:1",)}, ()),
        ({"enter": ("0:1",), "num_instruments": 1}, (1,)),
        ({"num_instruments": 2}, ()),
    ],
)
def test_the_model_is_told_who_plays_where_nobody_else_may(flags: dict, told: tuple) -> None:
    """A prefix lists all that play: a part of them would be untrue."""
    assert read_prefix(ControlConfig(**flags).prefix()).instruments == told


@pytest.mark.parametrize(
    ("flags", "kept", "told"),
    [
        ({}, (1, 41), (1, 41)),
        ({"num_instruments": 2}, (1, 41), (1, 41)),
        ({"num_instruments": 3}, (), ()),
        ({"enter": ("0:2",)}, (1, 41), (1, 41)),
        ({"enter": ("7:2",)}, (), ()),
        ({"instruments": ("7",)}, (8,), (8,)),
        ({"instruments": ("7", "0", "40", "3"), "num_instruments": 2}, (1, 4, 8, 41), (1, 41)),
        ({"instruments": ("7", "0", "3"), "num_instruments": 2}, (1, 4, 8), ()),
    ],
)
def test_flags_come_before_who_plays_in_a_text(flags: dict, kept: tuple, told: tuple) -> None:
    said = Attributes(instruments=(1, 41))
    controls = ControlConfig(**flags)
    assert controls.keeping(said).listed_instruments == kept
    assert read_prefix(controls.prefix(said)).instruments == told


def test_drums_that_enter_play_though_a_text_denies_them() -> None:
    own = ControlConfig(enter=("drums:2",))
    assert own.keeping(Attributes(), drums=False).wishes.entries == ((0, 2),)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tempo": float("nan")}, "--tempo nan: allowed are"),
        ({"density": float("nan")}, "--density nan: allowed are"),
        ({"density": float("inf")}, "--density inf: allowed are"),
        ({"bars": 2, "chords": ("C", "G", "C")}, "3 chords wished for 2 bars"),
        ({"bars": 2, "enter": ("drums:2",)}, "drums from bar 2"),
        ({"enter": ("drums:2",), "drums": False}, "drums shall play and may not"),
        ({"enter": ("3:2",), "instruments": ("1",)}, r"Piano \(3\) shall play and may not"),
        ({"num_instruments": 3, "instruments": ("1", "2")}, "allowed: 1 to 2"),
        ({"bars": 1, "num_instruments": 5, "notes_per_bar": "1-4"}, "of at most 4 notes hold 4"),
        ({"notes_per_bar": "400-"}, "holds 384 in a bar of 3 steps"),
        ({"notes_per_bar": "4-2"}, "4 to 2 notes a bar"),
        ({"scale_only": True}, "--scale_only without --key"),
        ({"pitch_range": ("33:61-61",), "instruments": ("33",), "key": "C major",
          "scale_only": True}, r"Fingered Electric Bass \(33\) has no pitch left"),
    ],
)  # fmt: skip
def test_what_cannot_come_is_refused_before_anything_is_sampled(flags: dict, message: str) -> None:
    with pytest.raises(MeloFormerError, match=message) as refusal:
        ControlConfig(**flags)
    assert "\n" not in str(refusal.value)


def test_a_piece_whose_text_says_its_length_is_refused_once_that_is_known() -> None:
    """Without --bars a text may ask for more bars than a piece has otherwise."""
    long = ControlConfig(chords=("C*20",))
    with pytest.raises(ConfigError, match="20 chords wished for 16 bars"):
        Order(title="", controls=long)
    Order(title="", controls=ControlConfig(bars=20, chords=("C*20",)))


def test_wishes_are_said_in_words() -> None:
    controls = ControlConfig(
        bars=4, key="C major", scale_only=True, chords=("C", "G"), num_instruments=2,
        enter=("drums:2",), pitch_range=("33:28-52",), notes_per_bar="2-12", density=4.0,
    )  # fmt: skip
    assert controls.describe() == (
        "4 bars, C major, its scale only, chords C G, 2 instruments, drums from bar 2, "
        "pitches 33:28-52, 2-12 notes a bar, 4 notes per quarter"
    )
