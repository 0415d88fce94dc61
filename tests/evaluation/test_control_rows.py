"""The judge against generators whose control is known: a perfect one, a deaf one, one that lies."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from meloformer.evaluation.control_intervals import FEWEST_APART
from meloformer.evaluation.control_rows import (
    Generated,
    JudgedPiece,
    Request,
    Row,
    judge_row,
    judge_sections,
    reference_row,
    rows_of,
)
from meloformer.evaluation.control_scores import METRICS, hear, wanted_of
from meloformer.evaluation.control_table import (
    comparison_table,
    comparisons,
    intervals_of,
    plain,
    score_tables,
    verdict,
)
from meloformer.midi.grid import METRE_INDEX, METRE_STEPS
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.attributes import attributes_of
from meloformer.tokens.hid import decode, encode
from tests.midi.pieces import canonical_piece

METRES = (METRE_INDEX[4, 4], METRE_INDEX[3, 4])
NUM_PIECES = 16
TEMPOS = (8, 24, 40, 56)  # an octave apart: 30, 60, 120, 240


def music_of(number: int, num_bars: int) -> QuantisedPiece:
    """A cadence whose key, metre, tempo, instrument and density follow from its number."""
    metre = METRES[number % 2]
    length, third = int(METRE_STEPS[metre]), 4 - number // 2 % 2
    notes = []
    for bar in range(num_bars):
        root = (0, 5, 7, 0)[bar % 4]
        quality = 4 if root == 7 else third
        for interval in (0, quality, 7):
            for onset in range(0, length, 24 if number % 3 else 72):
                pitch = 48 + number % 12 + root + interval
                notes.append((bar, 1 + number % 5, onset, pitch, 24, 66))
    return canonical_piece([metre] * num_bars, [TEMPOS[number % 4]] * num_bars, notes)


@pytest.fixture(scope="module")
def pieces() -> list[JudgedPiece]:
    made = []
    for number in range(NUM_PIECES):
        music = music_of(number, 8)
        heard = hear(music)
        attributes = {
            "tempo_bpm": heard.tempo_bpm,
            "metre": "4/4" if heard.metre == METRES[0] else "3/4",
            "key_index": heard.key,
            "bars": 8,
            "instruments": sorted(heard.instruments),
            "density_bin": heard.density,
        }
        made.append(
            JudgedPiece(
                name=("test", f"key{number}", 0, 8),
                ids=encode(music),
                text=f"piece {number}",
                template="t",
                wanted=wanted_of(attributes),
            )
        )
    return made


class Perfect:
    """Writes what its text names; silent, it writes piece 0."""

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        return [self.write(request) for request in requests]

    def write(self, request: Request) -> Generated:
        sections = request.sections or ((self.unsaid(request), request.num_bars),)
        parts = [music_of(int(text.split()[1]), bars) for text, bars in sections]
        music = parts[0]
        for part in parts[1:]:
            music = QuantisedPiece(
                **{
                    field.name: np.concatenate(
                        [
                            getattr(music, field.name),
                            getattr(part, field.name)
                            + (music.num_bars if field.name == "bar" else 0),
                        ]
                    )
                    for field in dataclasses.fields(QuantisedPiece)
                }
            )
        said = None if request.way == "summaries" else attributes_of(music)
        return Generated(ids=encode(music), said=said)

    def unsaid(self, request: Request) -> str:
        return "piece 0"


class Deaf(Perfect):
    """Writes any piece at all, whatever it is told."""

    def write(self, request: Request) -> Generated:
        number = int(np.random.default_rng(request.seed).integers(NUM_PIECES))
        return super().write(
            dataclasses.replace(request, sections=((f"piece {number}", request.num_bars),))
        )


class Liar(Perfect):
    """Announces one piece and writes another."""

    def write(self, request: Request) -> Generated:
        honest = super().write(request)
        other = music_of(int(request.sections[0][0].split()[1]) + 5, request.num_bars)
        return Generated(ids=encode(other), said=honest.said)


def judged(pieces, generator, source="text", way="summaries", **kwargs):
    row, _ = judge_row(pieces, source, way, generator, max_bars=8, seed=1, **kwargs)
    return row


def test_real_pieces_score_full_marks_against_their_own_texts(pieces) -> None:
    found = intervals_of(reference_row(pieces, max_bars=8))
    assert {name for name in METRICS if found[name].mean == 1} == set(METRICS) - {"length"}


def test_real_pieces_are_heard_as_far_as_pieces_are_written(pieces) -> None:
    texts = ("piece 0", 3), ("piece 1", 9)
    request = Request(sections=texts, num_bars=12, way="summaries", seed=0)
    ids = Perfect().write(request).ids
    begins, goes_on = (
        dataclasses.replace(piece, name=("test", "both", 0, 12), ids=ids) for piece in pieces[:2]
    )
    for max_bars, scores in ((3, [1, 0]), (12, [0, 1])):
        found = reference_row([begins, goes_on], max_bars=max_bars).scores
        assert found["metre"].tolist() == found["tempo_bin"].tolist() == scores
    (heard,) = reference_row([begins], max_bars=3).scores["instruments"]
    assert heard == 1, "what enters later is not heard"
    metre = [METRES[0]] * 2
    late = encode(canonical_piece(metre, [TEMPOS[0]] * 2, [(1, 1, 0, 60, 24, 66)]))
    begins = dataclasses.replace(begins, ids=late)
    found = reference_row([begins], max_bars=1).scores
    assert found["key"] == found["instruments"] == 0, "a silent beginning is heard as one"


def test_rows_and_ways_are_chosen_and_silence_has_one_way() -> None:
    assert rows_of(("none", "text"), ("strict", "summaries")) == [
        ("text", "summaries"),
        ("text", "strict"),
        ("none", "summaries"),
    ]
    assert rows_of(("none",), ("strict",)) == [("none", "summaries")]
    assert set(rows_of(("shuffled", "true"))) < set(rows_of()) and len(rows_of()) == 10


def test_a_length_that_goes_unheard_counts_against_and_a_given_one_not_at_all(pieces) -> None:
    class HardOfHearing(Perfect):
        def write(self, request: Request) -> Generated:
            honest = super().write(request)
            is_heard = request.sections and request.seed % 2
            said = honest.said if is_heard else dataclasses.replace(honest.said, length=None)
            return Generated(ids=honest.ids, said=said if request.seed % 3 else None)

    found = intervals_of(judged(pieces, HardOfHearing(), way="attributes"))["length"]
    heard = [seed % 2 and seed % 3 for seed in range(1, 1 + NUM_PIECES)]
    assert (found.n, found.mean) == (NUM_PIECES, np.mean(np.array(heard) > 0))
    given = judged(pieces, Perfect(), "true", "strict", true_summaries=lambda piece: object())
    for row in (given, judged(pieces, Perfect(), "none")):
        assert intervals_of(row)["length"].n == 0, "nobody listened"


def test_a_perfect_generator_is_perfect_from_its_text_and_lost_with_anothers(pieces) -> None:
    own, other = (judged(pieces, Perfect(), source, "strict") for source in ("text", "shuffled"))
    for name in METRICS:
        assert intervals_of(own)[name].mean == 1
    assert intervals_of(own)["length"].n == len(pieces)
    found = {one["metric"]: one for one in comparisons([own, other])}
    for name in ("tempo_bin", "key", "metre", "instruments"):
        assert not found[name]["touch"] and found[name]["difference"]["low"] > 0
    assert found["length"]["touch"], "every piece plans as many bars"


def test_a_deaf_generator_scores_with_its_own_text_as_with_anothers(pieces) -> None:
    own, other = (judged(pieces, Deaf(), source) for source in ("text", "shuffled"))
    found = comparisons([own, other])
    assert found and all(one["touch"] for one in found)
    assert all(one["difference"]["low"] <= 0 <= one["difference"]["high"] for one in found)


def test_what_the_prefix_says_is_held_against_what_is_heard(pieces) -> None:
    honest, liar = (judged(pieces, one, way="strict") for one in (Perfect(), Liar()))
    assert intervals_of(honest, kept=True)["key"].mean == 1
    assert intervals_of(liar, kept=True)["key"].mean == 0
    silent = judged(pieces, Perfect())
    assert all(one.n == 0 for one in intervals_of(silent, kept=True).values())
    assert score_tables([silent], kept=True) == []


def test_only_true_rows_get_true_summaries_and_true_attributes(pieces) -> None:
    pieces = pieces[:4]
    seen: list[Request] = []

    class Spy(Perfect):
        def write(self, request: Request) -> Generated:
            seen.append(request)
            return super().write(request)

    sums = {piece.name: object() for piece in pieces}
    for source, way in rows_of():
        judged(pieces, Spy(), source, way, true_summaries=lambda piece: sums[piece.name])
    per_row = [seen[start : start + len(pieces)] for start in range(0, len(seen), len(pieces))]
    for (source, way), requests in zip(rows_of(), per_row, strict=True):
        assert all((one.summaries_SD is not None) == (source == "true") for one in requests)
        is_told = source == "true" and way != "summaries"
        assert all((one.attributes is not None) == is_told for one in requests)
        assert all(bool(one.sections) == (source in ("text", "shuffled")) for one in requests)
        assert [one.seed for one in requests] == [one.seed for one in per_row[0]]
        if source == "true":
            assert [one.summaries_SD for one in requests] == list(sums.values())
        if source == "shuffled":
            for piece, one in zip(pieces, requests, strict=True):
                assert one.sections[0][0] != piece.text


def test_long_pieces_are_written_up_to_the_bars_allowed(pieces) -> None:
    _, written = judge_row(pieces, "text", "summaries", Perfect(), max_bars=3, seed=0)
    assert {decode(one.ids).num_bars for one in written} == {3}


def test_each_section_is_scored_against_its_own_text(pieces) -> None:
    rows = judge_sections(pieces, Perfect(), section_bars=4, seed=2)
    assert [row.source for row in rows.values()] == ["text", "shuffled"] * 2
    for row in rows.values():
        found = intervals_of(row)
        if row.source == "text":
            assert found["tempo_bin"].mean == found["instruments"].mean == 1
            assert found["key"].mean > 0.9
        else:
            assert found["tempo_bin"].mean < 0.5


def test_tables_hold_pieces_and_interval_of_every_share(pieces) -> None:
    rows = [judged(pieces, Perfect()), judged(pieces, Perfect(), "shuffled")]
    lines = score_tables(rows)
    cells = [cell for line in lines if "text" in line for cell in line.split("|")[2:-1]]
    assert cells and all(
        ("[" in cell and f"n {NUM_PIECES}" in cell) or "-" in cell for cell in cells
    )
    assert len({len(line) for line in comparison_table(comparisons(rows))}) == 1


def test_few_pieces_show_nothing_however_far_apart_their_intervals_are(pieces) -> None:
    def row(source, value: float, num_pieces: int) -> Row:
        nothing = dict.fromkeys(METRICS, np.full(num_pieces, np.nan))
        scores = nothing | {"instruments": np.full(num_pieces, value)}
        return Row(source=source, way="summaries", scores=scores, kept=nothing)

    for num_pieces, word in (
        (1, "nothing shown, 1 piece differs"),
        (FEWEST_APART - 1, "nothing shown, 5 pieces differ"),
        (FEWEST_APART, "apart, higher"),
    ):
        rows = [row("text", 0.75, num_pieces), row("shuffled", 0.5, num_pieces)]
        (found,) = comparisons(rows)
        assert not found["touch"] and verdict(found) == word


def test_json_has_null_where_nothing_was_measured() -> None:
    assert plain({"a": [np.nan, 1.0], "b": np.array([np.nan])}) == {"a": [None, 1.0], "b": [None]}
