"""The judge's bars beside bars, with writers of known habits."""

from collections.abc import Sequence

import numpy as np
import pytest

from meloformer.evaluation.control_likeness import (
    REAL,
    Likeness,
    judge_likeness,
    similarity_errors,
    variety_intervals,
)
from meloformer.evaluation.control_rows import (
    WAYS,
    Generated,
    JudgedPiece,
    Request,
    Way,
    judge_row,
)
from meloformer.evaluation.control_scores import Wanted
from meloformer.midi.grid import METRE_INDEX
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.hid import encode
from tests.midi.pieces import canonical_piece

NUM_PIECES = 6
MAX_BARS = 4


def music_of(number: int, num_bars: int, period: int = 2) -> QuantisedPiece:
    """Bars that come again after so many; those of another number share no note."""
    notes = [(bar, 1 + number, 24 * (bar % period), 60, 24, 66) for bar in range(num_bars)]
    return canonical_piece([METRE_INDEX[4, 4]] * num_bars, [40] * num_bars, notes)


@pytest.fixture(scope="module")
def pieces() -> list[JudgedPiece]:
    return [
        JudgedPiece(
            name=("test", f"key{number}", 0, 6),
            ids=encode(music_of(number, 6)),
            text=f"piece {number}",
            template="t",
            wanted=Wanted(),
        )
        for number in range(NUM_PIECES)
    ]


class Faithful:
    """Writes the piece that its text names; silent, bars that never come again."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        self.requests += requests
        return [Generated(ids=encode(self.music(request))) for request in requests]

    def music(self, request: Request) -> QuantisedPiece:
        if not request.sections:
            return music_of(0, request.num_bars, period=1000)
        return music_of(int(request.sections[0][0].split()[1]), request.num_bars)


class Restless(Faithful):
    """Writes another piece for each seed."""

    def music(self, request: Request) -> QuantisedPiece:
        return music_of(request.seed, request.num_bars)


def judged(
    pieces: Sequence[JudgedPiece], generator: Faithful, variety_n: int, ways: Sequence[Way] = WAYS
) -> Likeness:
    written = {}
    for source, way in (*(("text", way) for way in ways), ("none", "summaries")):
        row, made = judge_row(pieces, source, way, generator, max_bars=MAX_BARS, seed=3)
        written[row.name] = made
    return judge_likeness(
        pieces, written, generator, variety_n=variety_n, max_bars=MAX_BARS, seed=3
    )


def test_who_writes_the_real_pieces_has_no_error_and_who_never_repeats_has_one(pieces) -> None:
    found = judged(pieces, Faithful(), 0)
    assert set(found.pairs) == {REAL, *(f"text, {way}" for way in WAYS), "none, summaries"}
    assert found.pairs[REAL].curve().tolist() == [0, 1, 0]
    cut = "the real pieces are cut to the bars that are written"
    assert (found.pairs[REAL].counts == found.pairs["text, summaries"].counts).all(), cut
    errors = similarity_errors(found, seed=0)
    assert errors[REAL].mean == errors["text, summaries"].mean == 0
    assert errors["none, summaries"].mean == pytest.approx(1 / 3)
    assert {one.n for one in errors.values()} == {NUM_PIECES}
    assert found.variety == {}, "nothing was written twice"


def test_a_faithful_writer_has_no_variety_and_a_restless_one_all(pieces) -> None:
    for generator, variety in ((Faithful(), 0), (Restless(), 1)):
        found = variety_intervals(judged(pieces, generator, NUM_PIECES), seed=0)
        assert set(found) == {REAL, "text, summaries", "text, attributes"}
        assert found["text, summaries"].mean == found["text, attributes"].mean == variety
        assert found[REAL].mean == 1, "real pieces share no note"
        assert {one.n for one in found.values()} == {NUM_PIECES}


def test_so_many_pieces_and_ways_as_asked_for_are_written_again_with_seeds_of_their_own(
    pieces,
) -> None:
    generator = Restless()
    found = judged(pieces, generator, 2, ("summaries",))
    assert set(found.variety) == {REAL, "text, summaries"}
    before, again = generator.requests[: 2 * NUM_PIECES], generator.requests[2 * NUM_PIECES :]
    assert len(again) == 2 and not {one.seed for one in before} & {one.seed for one in again}
    told = [~np.isnan(values) for values in found.variety.values()]
    assert told[0].sum() == 2 and (told[0] == told[1]).all()
    texts = [piece.text for piece, is_told in zip(pieces, told[0], strict=True) if is_told]
    assert [one.sections[0][0] for one in again] == texts


def test_only_ways_in_which_texts_were_written_are_written_again(pieces) -> None:
    strict = Restless()
    assert judged(pieces, strict, 2, ("strict",)).variety == {}
    assert len(strict.requests) == 2 * NUM_PIECES, "nothing was written twice"
    assert set(judged(pieces, Restless(), 2, ("attributes",)).variety) == {REAL, "text, attributes"}


def test_pieces_that_are_not_there_count_in_no_row(pieces) -> None:
    absent = JudgedPiece(
        name=("", "elsewhere", 0, MAX_BARS),
        ids=np.zeros(0, np.uint16),
        text="piece 9",
        template="user",
        wanted=Wanted(),
    )
    found = judged([*pieces, absent], Faithful(), NUM_PIECES + 1, ("summaries",))
    errors = similarity_errors(found, seed=0)
    assert {one.n for one in errors.values()} == {NUM_PIECES}
    varieties = variety_intervals(found, seed=0)
    assert varieties["text, summaries"].n == NUM_PIECES + 1
    assert varieties[REAL].n == NUM_PIECES - 1, "nor does the piece that is paired with it"
    nobody = judged([absent] * 2, Faithful(), 2, ("summaries",))
    assert similarity_errors(nobody, seed=0)["text, summaries"].n == 0
