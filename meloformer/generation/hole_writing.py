"""Bars of a piece written anew: what is read around them, how many at once, which candidate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from meloformer.bridge.flow import row_seed
from meloformer.errors import GenerationError
from meloformer.generation.notices import Notice, NoticeCode, Say
from meloformer.generation.part_writing import Part, WrittenPart, given_bars, write_part
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.splicing import spliced, with_notes, without_empty_end
from meloformer.midi.harmony import bar_chords
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.masks import num_summaries
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import Attributes, write_prefix
from meloformer.tokens.filling import Hole, fill
from meloformer.tokens.hid import decode, encode_bars
from meloformer.tokens.vocabulary import EOS, FILL, length_bin
from meloformer.tokens.windows import bar_starts, cut_window

Stop = Callable[[int], bool]

# Room for a bar to be written, in bars of the piece as they are on average.
_ROOM = 1.5
_LEAST_BAR_TOKENS = 16
# Tokens of a filled window besides its prefix and its bars, and of metres and tempos restated.
_MARKS = 10
# Keep the seeds of candidates and of windows apart from those of pieces.
_CANDIDATE, _WINDOW = 1, 2


class StoppedError(GenerationError):
    """Somebody stopped the writing; nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What stays, and who is to play.

    Args:
        kept: all bars, and the notes that stay.
        first: first bar to be written.
        last: one past the last of them.
        players: instruments to be written, ascending.
        has_others: what others play in the same bars stays and is read.
        told: what a prefix says of the piece; metre, tempo and length aside.
        bar_tokens: of a bar, at the most that is likely.
        asked: of the players, those that play at least once in what is written.
    """

    kept: QuantisedPiece
    first: int
    last: int
    players: tuple[int, ...]
    has_others: bool
    told: Attributes
    bar_tokens: float
    asked: tuple[int, ...] = ()


class _Watch:
    """Counts what is drawn, and ends it when somebody says so."""

    def __init__(self, stop: Stop | None) -> None:
        self._stop, self._num_tokens = stop, 0

    def __call__(self) -> None:
        self._num_tokens += 1
        if self._stop is not None and self._stop(self._num_tokens):
            raise StoppedError(
                f"stopped after {self._num_tokens} tokens: the piece stays as it was"
            )


def bar_tokens_of(piece: QuantisedPiece) -> float:
    """Room that a bar like those of a piece may take, in tokens."""
    bars = encode_bars(piece, bar_chords(piece))
    return max(_LEAST_BAR_TOKENS, _ROOM * len(bars) / piece.num_bars)


def written(
    model: MuseFormer,
    job: Job,
    sampling: SamplingConfig,
    *,
    seed: int,
    stop: Stop | None,
    say: Say,
) -> QuantisedPiece:
    """The piece with its bars written; of several candidates the likeliest.

    Args:
        model: in evaluation mode.
        job: what is to be written.
        sampling: how bold it is, and the number of candidates.
        seed: of the first candidate; the others' follow from it.
        stop: asked after each token, with the number so far, whether to end here.
        say: called with each notice that a user should read.

    Raises:
        StoppedError: `stop` said so.
    """
    watch = _Watch(stop)
    candidates = [
        _candidate(
            model,
            job,
            sampling,
            row_seed(seed, number, _CANDIDATE) if number else seed,
            watch,
            (lambda notice: None) if number else say,
        )
        for number in range(sampling.best_of)
    ]
    return min(candidates, key=lambda candidate: candidate[1])[0]


def _candidate(
    model: MuseFormer,
    job: Job,
    sampling: SamplingConfig,
    seed: int,
    watch: _Watch,
    say: Say,
) -> tuple[QuantisedPiece, float]:
    """Write the bars, as many at once as leave half a row for what is around them.

    Returns:
        The piece, and how unlikely the model finds what it wrote, in nats per note.
    """
    config = model.config
    most = min(int(config.max_seq_len / 2 / job.bar_tokens), num_summaries(config.max_seq_len) // 2)
    most = job.last - job.first if _fits_a_row(model, job) else max(most, 1)
    edges = [*range(job.first, job.last, most), job.last]
    if len(edges) > 2:
        say(
            Notice(
                code=NoticeCode.IN_PARTS,
                line=f"bars {job.first}-{job.last - 1} are written {most} at a time: a row of the "
                f"model's training (--max_seq_len {config.max_seq_len}) holds no more beside what "
                "is around",
            )
        )
    nats, num_notes, is_cut, kept = 0.0, 0, False, job.kept
    silent = set(job.asked)
    for number, (start, end) in enumerate(pairwise(edges)):
        # What stands behind the last of these bars does not follow the earlier ones.
        reads_behind = bool(config.fill_rate) and end == job.last < kept.num_bars
        own = replace(job, kept=kept, first=start, last=end, asked=tuple(sorted(silent)))
        window = _window(model, own, reads_behind)
        is_cut |= window != (0, kept.num_bars if reads_behind else end)
        own_seed = row_seed(seed, number, _WINDOW) if number else seed
        new, part = _drawn(model, own, window, sampling, own_seed, watch)
        kept = spliced(kept, new)
        silent -= set(new.instrument.tolist())
        nats, num_notes = nats + part.nats, num_notes + part.num_notes
    if is_cut:
        say(
            Notice(
                code=NoticeCode.NEAREST,
                line="the piece is longer than a row of the model's training (--max_seq_len "
                f"{config.max_seq_len}): it read the bars nearest to what it wrote",
            )
        )
    return without_empty_end(kept), nats / num_notes if num_notes else float("inf")


def _fits_a_row(model: MuseFormer, job: Job) -> bool:
    """Whether the bars can be written at once while all others are read."""
    sizes = np.diff(bar_starts(_tokens(job)))
    around = int(sizes[: job.first].sum() + sizes[job.last :].sum())
    has_slots = job.kept.num_bars <= num_summaries(model.config.max_seq_len)
    return has_slots and around <= _free_tokens(model, job)


def _free_tokens(model: MuseFormer, job: Job) -> int:
    """What a row has left for bars around those to be written; below 0 where they fill it."""
    told = len(write_prefix(job.told)) + len(job.players)
    return model.config.max_seq_len - _MARKS - told - int((job.last - job.first) * job.bar_tokens)


def _window(model: MuseFormer, job: Job, reads_behind: bool) -> tuple[int, int]:
    """Bars that the model reads or writes: the nearest on both sides, by turns."""
    sizes = np.diff(bar_starts(_tokens(job))).tolist()
    free_bars = num_summaries(model.config.max_seq_len) - (job.last - job.first)
    free_tokens = _free_tokens(model, job)
    start, end = job.first, job.last
    grows_before, grows_behind = True, reads_behind
    while grows_before or grows_behind:
        if grows_before:
            grows_before = start > 0 and free_bars > 0 and sizes[start - 1] <= free_tokens
        if grows_before:
            start -= 1
            free_bars, free_tokens = free_bars - 1, free_tokens - sizes[start]
        if grows_behind:
            grows_behind = end < len(sizes) and free_bars > 0 and sizes[end] <= free_tokens
        if grows_behind:
            free_bars, free_tokens = free_bars - 1, free_tokens - sizes[end]
            end += 1
    return start, end


def _drawn(
    model: MuseFormer,
    job: Job,
    window: tuple[int, int],
    sampling: SamplingConfig,
    seed: int,
    watch: _Watch,
) -> tuple[QuantisedPiece, WrittenPart]:
    """The notes that the model writes, in all bars of the piece."""
    first, last = job.first - window[0], job.last - window[0]
    ids = cut_window(_tokens(job), *window)
    named = job.players if job.has_others else ()
    end = ids[:0]
    if window[1] > job.last:
        ids = fill(ids, Hole(first=first, last=last, instruments=named))
        hole = int(np.flatnonzero(ids == FILL)[2]) + 1
        ids, end = ids[:-1], ids[-1:]
    else:
        if named:
            ids = fill(ids, Hole(instruments=named))
        starts = bar_starts(ids)
        hole, ids = int(starts[first]), ids[: starts[last]]
    is_last_bar = job.last == job.kept.num_bars
    part = Part(
        context=ids[:hole].astype(np.int64),
        bars=given_bars(ids[hole:].astype(np.int64)),
        instruments=job.players,
        kept=job.kept,
        first_bar=job.first,
        needs_note=is_last_bar and not (job.kept.bar == job.last - 1).any(),
        asked=job.asked,
    )
    done = write_part(model, part, sampling, seed=seed, on_token=watch)
    music = decode(np.concatenate([done.ids, end]))
    is_new = (music.bar >= first) & (music.bar < last) & np.isin(music.instrument, job.players)
    new = with_notes(music, is_new)
    bars = replace(
        new,
        bar_metre=job.kept.bar_metre,
        bar_tempo=job.kept.bar_tempo,
        bar=new.bar + np.int32(window[0]),
    )
    return bars, done


def _tokens(job: Job) -> np.ndarray:
    """What stays as tokens, BOS to EOS, with its empty bars; told as far as it is known."""
    piece = job.kept
    length = int(length_bin(piece.num_bars))
    told = replace(
        job.told, metre=int(piece.bar_metre[0]), tempo=int(piece.bar_tempo[0]), length=length
    )
    bars = encode_bars(piece, bar_chords(piece))
    return np.concatenate([write_prefix(told), bars, np.array([EOS], dtype=np.uint16)])
