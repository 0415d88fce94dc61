"""Change a given piece: go on from a bar, write bars anew, write or replace instruments.

What is not asked for stays as it is, note for note. The model reads as much of the piece around
what it writes as a row of its training held; tokens/filling.py says in which order.
"""

import logging
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from meloformer.errors import GenerationError
from meloformer.generation.hole_writing import Job, Stop, bar_tokens_of, written
from meloformer.generation.notices import Notice, NoticeCode, Say
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.splicing import with_bars, with_notes, without_empty_end
from meloformer.midi.general_midi import instrument_in_words
from meloformer.midi.grid import NUM_INSTRUMENTS
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import attributes_of

_warn = logging.getLogger(__name__).warning


def rewrite_bars(
    model: MuseFormer,
    piece: QuantisedPiece,
    first: int,
    last: int,
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    instruments: Collection[int] | None = None,
    stop: Stop | None = None,
    say: Say = _warn,
) -> QuantisedPiece:
    """Write some bars anew; metre and tempo stay.

    Args:
        model: in evaluation mode; one that never learned to fill reads what stands before alone.
        piece: canonical, with at least one note.
        first: first bar, from 0.
        last: one past the last bar.
        sampling: how bold the choice of a token is.
        seed: of the draws.
        instruments: only what these play is written anew, 0 drums, 1 + program otherwise; None:
            everything, by the instruments that the piece has.
        stop: asked after each token, with the number so far, whether to end here.
        say: called with each notice that a user should read.

    Returns:
        As many bars as before, all that is not written equal note for note.

    Raises:
        GenerationError: no such bars or instruments, no notes, or a model that cannot do it.
        StoppedError: `stop` said so.
    """
    _check_bars(piece, first, last)
    playing = np.unique(piece.instrument).tolist()
    players = tuple(playing) if instruments is None else _checked(instruments)
    if not set(playing) <= set(players):
        return write_instruments(
            model, piece, players, sampling, first=first, last=last, seed=seed, stop=stop, say=say
        )
    is_inside = (piece.bar >= first) & (piece.bar < last)
    job = Job(
        kept=with_notes(piece, ~is_inside),
        first=first,
        last=last,
        players=players,
        has_others=False,
        told=replace(attributes_of(piece), instruments=players),
        bar_tokens=bar_tokens_of(piece),
        asked=() if instruments is None else players,
    )
    if not model.config.fill_rate and last < piece.num_bars:
        say(
            Notice(
                code=NoticeCode.NO_FILL,
                line=f"bars {first}-{last - 1}: the model was trained with --fill_rate 0 and does "
                "not read the bars behind them; train with a rate above 0 for bars that lead over "
                "to them",
            )
        )
    return written(model, job, sampling, seed=seed, stop=stop, say=say)


def continue_piece(
    model: MuseFormer,
    piece: QuantisedPiece,
    from_bar: int,
    num_bars: int,
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    instruments: Collection[int] | None = None,
    stop: Stop | None = None,
    say: Say = _warn,
) -> QuantisedPiece:
    """Keep the bars before one and go on from there; metre and tempo of the last one go on.

    Args:
        model: in evaluation mode.
        piece: canonical, with at least one note.
        from_bar: the first bar that is written; what begins from there on is left out.
        num_bars: bars to write.
        sampling: how bold the choice of a token is.
        seed: of the draws.
        instruments: the only ones that play on, 0 drums, 1 + program otherwise; None: those that
            played.
        stop: asked after each token, with the number so far, whether to end here.
        say: called with each notice that a user should read.

    Returns:
        A piece of `from_bar + num_bars` bars.

    Raises:
        GenerationError: no such bar or instruments, or no note before it.
        StoppedError: `stop` said so.
    """
    if not 1 <= from_bar <= piece.num_bars:
        raise GenerationError(
            f"from bar {from_bar}: the piece has {piece.num_bars} bars; allowed: 1 to "
            f"{piece.num_bars}, which is its end"
        )
    if num_bars < 1:
        raise GenerationError(f"{num_bars} bars to write; allowed: 1 and above")
    kept = with_bars(piece, from_bar)
    if not kept.num_notes:
        raise GenerationError(
            f"from bar {from_bar}: found no note before it; allowed: a bar behind the first note"
        )
    playing = np.unique(kept.instrument).tolist()
    players = tuple(playing) if instruments is None else _checked(instruments)
    told = attributes_of(without_empty_end(kept))
    job = Job(
        kept=with_bars(kept, from_bar + num_bars),
        first=from_bar,
        last=from_bar + num_bars,
        players=players,
        has_others=False,
        told=replace(told, instruments=tuple(sorted({*playing, *players}))),
        bar_tokens=bar_tokens_of(kept),
        asked=() if instruments is None else players,
    )
    return written(model, job, sampling, seed=seed, stop=stop, say=say)


def write_instruments(
    model: MuseFormer,
    piece: QuantisedPiece,
    instruments: Collection[int],
    sampling: SamplingConfig,
    *,
    first: int = 0,
    last: int | None = None,
    seed: int = 0,
    stop: Stop | None = None,
    say: Say = _warn,
) -> QuantisedPiece:
    """Write or replace what some instruments play; all others stay as they are.

    Args:
        model: in evaluation mode, trained with --fill_rate above 0.
        piece: canonical, with at least one note.
        instruments: 0 drums, 1 + program otherwise; the piece may have them already.
        sampling: how bold the choice of a token is.
        first: first bar in which they are written, from 0.
        last: one past the last of those bars; None: the end.
        seed: of the draws.
        stop: asked after each token, with the number so far, whether to end here.
        say: called with each notice that a user should read.

    Returns:
        As many bars as before, all that is not written equal note for note.

    Raises:
        GenerationError: no such bars or instruments, no notes, nothing that would be kept, or a
            model that cannot do it.
        StoppedError: `stop` said so.
    """
    last = piece.num_bars if last is None else last
    _check_bars(piece, first, last)
    players = _checked(instruments)
    if not model.config.fill_rate:
        raise GenerationError(
            "--checkpoint: found a model that was trained with --fill_rate 0, which never reads "
            "what other instruments play in a bar before it writes one; allowed: one trained with "
            "a rate above 0"
        )
    told = attributes_of(piece)
    if set(told.instruments) <= set(players):
        names = ", ".join(map(instrument_in_words, told.instruments))
        raise GenerationError(
            f"instruments: found no other in the piece than those to be written ({names}); "
            "allowed: at least one that stays"
        )
    is_replaced = (piece.bar >= first) & (piece.bar < last) & np.isin(piece.instrument, players)
    job = Job(
        kept=with_notes(piece, ~is_replaced),
        first=first,
        last=last,
        players=players,
        has_others=True,
        told=replace(told, instruments=tuple(sorted({*told.instruments, *players}))),
        bar_tokens=bar_tokens_of(piece),
        asked=players,
    )
    return written(model, job, sampling, seed=seed, stop=stop, say=say)


def _check_bars(piece: QuantisedPiece, first: int, last: int) -> None:
    if not piece.num_notes:
        raise GenerationError("found a piece without notes; allowed: at least one note")
    if not 0 <= first < last <= piece.num_bars:
        raise GenerationError(
            f"bars {first}-{last - 1}: the piece has bars 0-{piece.num_bars - 1}; allowed: those, "
            "the first no later than the last"
        )


def _checked(instruments: Collection[int]) -> tuple[int, ...]:
    """Ascending, each once."""
    players = tuple(sorted(set(instruments)))
    if not players or not 0 <= players[0] <= players[-1] < NUM_INSTRUMENTS:
        raise GenerationError(
            f"instruments {list(players)}: allowed: one or more of 0 (drums) and 1 to "
            f"{NUM_INSTRUMENTS - 1} (1 + program)"
        )
    return players
