"""The rows of the judge's table: who says what the music shall be, and how the model hears it.

A row is a source (the piece's own text, another's, nobody, the piece's true summaries) and a way
(summaries alone, attributes in the prefix too, attributes kept by the grammar). Whatever wrote a
piece, it is scored against what its own text asks for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from meloformer.evaluation.control_intervals import derangement, stack
from meloformer.evaluation.control_likelihood import bare_bars
from meloformer.evaluation.control_scores import METRICS, Wanted, hear, score
from meloformer.midi.grid import TEMPOS_BPM
from meloformer.tokens.attributes import Attributes, attributes_of
from meloformer.tokens.hid import decode
from meloformer.tokens.windows import cut_window

WrittenSource = Literal["text", "shuffled", "true", "none"]
Source = Literal[WrittenSource, "piece"]
Way = Literal["summaries", "attributes", "strict"]
WRITTEN_SOURCES: tuple[WrittenSource, ...] = ("text", "shuffled", "true", "none")
WAYS: tuple[Way, ...] = ("summaries", "attributes", "strict")
# A bin of bars that no text asks for.
_UNHEARD = -1
# Requests that are handed to the generator at once.
_AT_ONCE = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedPiece:
    """An unseen window with the text that describes it.

    Args:
        name: split, key, first bar and last bar of the window.
        ids: its tokens, a sequence that decodes alone.
        text: a sentence of templates that training never saw.
        template: the templates of that sentence.
        wanted: what the sentence asks for.
    """

    name: tuple[str, str, int, int]
    ids: np.ndarray
    text: str
    template: str
    wanted: Wanted

    @property
    def num_bars(self) -> int:
        return self.name[3] - self.name[2]


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """One piece to be written.

    Args:
        sections: a text each and the bars that it holds for; () where nobody says anything.
        num_bars: bars of the piece.
        way: what the model is told besides summaries.
        seed: of the noise and of the sampling.
        summaries_SD: take these in place of the texts; a tensor in the base's own scale.
        attributes: take these in place of what the texts are heard to say.
    """

    sections: tuple[tuple[str, int], ...]
    num_bars: int
    way: Way
    seed: int
    summaries_SD: Any = None
    attributes: Attributes | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Generated:
    """One piece that was written.

    Args:
        ids: BOS to EOS.
        said: what its text is taken to ask for; None where nobody listened to one.
    """

    ids: np.ndarray
    said: Attributes | None = None


class Generator(Protocol):
    """Whatever writes pieces."""

    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """One piece for each request, in order; a request's piece does not depend on the others."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """Scores of a row.

    Args:
        source: who said what to write.
        way: how; None of the pieces themselves.
        scores: (P,) of each metric, against what each piece's own text asks for.
        kept: (P,) of each metric, against what the text was taken to ask for.
    """

    source: Source
    way: Way | None
    scores: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.source if self.way is None else f"{self.source}, {self.way}"


def rows_of(
    sources: Sequence[WrittenSource] = WRITTEN_SOURCES, ways: Sequence[Way] = WAYS
) -> list[tuple[WrittenSource, Way]]:
    """Rows that are generated, in the order of the tables.

    Nobody has no attributes to say, so `none` goes by summaries whatever the ways.
    """
    of_nobody: tuple[Way, ...] = ("summaries",)
    return [
        (source, way)
        for source in WRITTEN_SOURCES
        if source in sources
        for way in (of_nobody if source == "none" else WAYS)
        if source == "none" or way in ways
    ]


def judge_row(
    pieces: Sequence[JudgedPiece],
    source: WrittenSource,
    way: Way,
    generator: Generator,
    *,
    max_bars: int,
    seed: int,
    true_summaries: Callable[[JudgedPiece], Any] | None = None,
    on_piece: Callable[[int], None] | None = None,
) -> tuple[Row, list[Generated]]:
    """Write a piece for each of the judged ones and score it.

    Args:
        pieces: at least two.
        source: who says what to write.
        way: what the model is told besides summaries.
        generator: what writes.
        max_bars: longer pieces are written up to here.
        seed: of the row's noise and sampling, the same for piece k of every row, and of the pairs
            of `shuffled`.
        true_summaries: of a piece, all of its bars; for source `true`.
        on_piece: called with the number of pieces written after each batch of them.
    """
    others = derangement(len(pieces), seed) if source == "shuffled" else range(len(pieces))
    written: list[Generated] = []
    requests = []
    for number, (piece, other) in enumerate(zip(pieces, others, strict=True)):
        num_bars = min(piece.num_bars, max_bars)
        is_true = source == "true"
        assert true_summaries is not None or not is_true
        requests.append(
            Request(
                sections=((pieces[other].text, num_bars),)
                if source in ("text", "shuffled")
                else (),
                num_bars=num_bars,
                way=way,
                seed=seed + number,
                summaries_SD=true_summaries(piece) if is_true and true_summaries else None,
                attributes=attributes_of(decode(piece.ids))
                if is_true and way != "summaries"
                else None,
            )
        )
    for start in range(0, len(requests), _AT_ONCE):
        written += generator.generate(requests[start : start + _AT_ONCE])
        if on_piece is not None:
            on_piece(len(written))
    assert len(written) == len(pieces)
    return _scored(pieces, written, source, way), written


def reference_row(pieces: Sequence[JudgedPiece], *, max_bars: int) -> Row:
    """The real pieces against their own texts: nobody is expected to do better.

    Args:
        pieces: that are judged.
        max_bars: they are heard up to here, as far as those of the other rows are written. Texts
            speak of all bars, so that real pieces miss what comes later.
    """
    scores = [score(piece.wanted, hear(decode(bare_bars(piece.ids, max_bars)))) for piece in pieces]
    nothing = dict.fromkeys(METRICS, np.full(len(pieces), np.nan))
    return Row(source="piece", way=None, scores=stack(scores, METRICS), kept=nothing)


def _scored(
    pieces: Sequence[JudgedPiece], written: Sequence[Generated], source: Source, way: Way
) -> Row:
    # Of true summaries the judge itself says the length, and nobody of silence.
    is_listening = source in ("text", "shuffled") and way != "summaries"
    scores, kept = [], []
    for piece, made in zip(pieces, written, strict=True):
        heard = hear(decode(made.ids), length=_length(made.said) if is_listening else None)
        scores.append(score(piece.wanted, heard))
        kept.append(score(said_wanted(made.said), heard))
    return Row(source=source, way=way, scores=stack(scores, METRICS), kept=stack(kept, METRICS))


def _length(said: Attributes | None) -> int:
    """Bin of bars that was heard in a text; what goes unheard counts as a miss."""
    return _UNHEARD if said is None or said.length is None else said.length


def said_wanted(said: Attributes | None) -> Wanted:
    """Wishes as they were understood; how long a piece is was not left to them."""
    if said is None:
        return Wanted()
    return Wanted(
        tempo_bpm=None if said.tempo is None else float(TEMPOS_BPM[said.tempo]),
        metre=said.metre,
        key=said.key,
        instruments=frozenset(said.instruments) or None,
        density=said.density,
    )


def judge_sections(
    pieces: Sequence[JudgedPiece],
    generator: Generator,
    *,
    section_bars: int,
    seed: int,
) -> dict[str, Row]:
    """Pieces of two texts, one after the other, each part scored against both texts.

    Args:
        pieces: at least two; each is the first half once, and once the second half of another.
        generator: what writes, from summaries alone: a prefix speaks of a whole piece.
        section_bars: bars of each of the two parts.
        seed: of pairs, noise and sampling.

    Returns:
        Of each part a row by its own text (source `text`) and one by that of the other part
        (`shuffled`): what is heard of a text where it does not hold.
    """
    others = [pieces[other] for other in derangement(len(pieces), seed)]
    requests = [
        Request(
            sections=((first.text, section_bars), (second.text, section_bars)),
            num_bars=2 * section_bars,
            way="summaries",
            seed=seed + number,
        )
        for number, (first, second) in enumerate(zip(pieces, others, strict=True))
    ]
    written: list[Generated] = []
    for start in range(0, len(requests), _AT_ONCE):
        written += generator.generate(requests[start : start + _AT_ONCE])
    rows = {}
    by_both: tuple[tuple[Source, int, str], ...] = (
        ("text", 0, "its own text"),
        ("shuffled", 1, "the other part's text"),
    )
    for part in (0, 1):
        first = part * section_bars
        heard = [hear(decode(cut_window(one.ids, first, first + section_bars))) for one in written]
        for source, which, words in by_both:
            judges = (pieces, others)[(part + which) % 2]
            scores = [score(by.wanted, one) for by, one in zip(judges, heard, strict=True)]
            rows[f"part {part + 1} by {words}"] = Row(
                source=source,
                way="summaries",
                scores=stack(scores, METRICS),
                kept=dict.fromkeys(METRICS, np.full(len(pieces), np.nan)),
            )
    return rows
