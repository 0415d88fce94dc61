"""Small random models that write into given pieces, and what tests hold against each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from meloformer.generation import hole_writing
from meloformer.generation.notices import Notice
from meloformer.generation.part_writing import Part, WrittenPart, write_part
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.render import to_piece
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import EOS, FILL, KIND_OF, OFFSET, Kind
from tests.layouts import tiny_config
from tests.tokens.pieces import piece_of

FEW = SamplingConfig(top_k=40)
FOUR_FOUR, TEMPO = 3, 20


class Talkative(MuseFormer):
    """Random, but with several notes in most bars; the weights alone would end them at once."""

    def unembed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        logits_BTV = super().unembed(x_BTD)
        ends = np.flatnonzero(KIND_OF == Kind.BAR).tolist()
        less_V = torch.zeros_like(logits_BTV[0, 0])
        less_V[[*ends, EOS, FILL]] = 3.0
        return logits_BTV - less_V


class Monotonous(MuseFormer):
    """Knows four notes, whatever it has read, so that bars come again."""

    def unembed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        known = {
            Kind.ONSET: (0, 24),
            Kind.PITCH: (60, 61),
            Kind.DURATION: (5,),
            Kind.VELOCITY: (3,),
        }
        logits_V = torch.full((len(KIND_OF),), -30.0)
        logits_V[torch.from_numpy(KIND_OF == Kind.BAR)] = 0.0
        logits_V[torch.from_numpy(KIND_OF == Kind.INSTRUMENT)] = 5.0
        for kind, indices in known.items():
            logits_V[[OFFSET[kind] + index for index in indices]] = 5.0
        return logits_V.expand(*x_BTD.shape[:2], -1)


def a_model(fill_rate: float = 0.3, **changes: Any) -> MuseFormer:
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "width": 32, "ffn_width": 32, "max_seq_len": 1024}
    return Talkative(tiny_config(fill_rate=fill_rate, **{**sizes, **changes})).eval()


FILLING, PLAIN = a_model(), a_model(0.0)


def quiet(_: Notice) -> None:
    pass


def a_piece(num_bars: int = 6, instruments: tuple[int, ...] = (0, 1, 34)) -> QuantisedPiece:
    """A scale for every instrument, bar 3 empty."""
    notes = [
        (bar, instrument, 24 * beat, 40 + instrument % 8 + 2 * beat + bar % 12, 24, 66)
        for bar in range(num_bars)
        if bar != 3
        for instrument in instruments
        for beat in range(2)
    ]
    return piece_of([FOUR_FOUR] * num_bars, [TEMPO] * num_bars, notes)


def notes_where(
    piece: QuantisedPiece, is_kept: Callable[[int, int], bool]
) -> list[tuple[int, ...]]:
    """Notes whose bar and instrument are kept, one by one."""
    found = []
    for k in range(piece.num_notes):
        if is_kept(int(piece.bar[k]), int(piece.instrument[k])):
            columns = (
                piece.bar, piece.instrument, piece.onset_steps, piece.pitch,
                piece.duration_steps, piece.velocity,
            )  # fmt: skip
            found.append(tuple(int(column[k]) for column in columns))
    return found


def check_edited(
    before: QuantisedPiece, after: QuantisedPiece, is_kept: Callable[[int, int], bool]
) -> None:
    """Canonical, of the same bars, and what is kept is the same."""
    assert notes_where(after, is_kept) == notes_where(before, is_kept)
    assert after.bar_metre.tolist() == before.bar_metre.tolist()
    assert after.bar_tempo.tolist() == before.bar_tempo.tolist()
    # Written and read again, so that nothing overlaps or hides behind another note.
    assert sorted(notes_where(after, lambda *_: True)) == notes_where(after, lambda *_: True)
    assert after.bar.max() == after.num_bars - 1
    again = quantise(to_piece(after))
    assert notes_where(again, lambda *_: True) == notes_where(after, lambda *_: True)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Part, WrittenPart, np.ndarray]]:
    """Every part that is drawn from now on, and the sequence that is decoded of it."""
    found: list[Any] = []

    def write(model: MuseFormer, part: Part, *args: Any, **kwargs: Any) -> WrittenPart:
        done = write_part(model, part, *args, **kwargs)
        found.append([part, done])
        return done

    def read(ids: np.ndarray) -> QuantisedPiece:
        found[-1].append(ids)
        return decode(ids)

    monkeypatch.setattr(hole_writing, "write_part", write)
    monkeypatch.setattr(hole_writing, "decode", read)
    return found
