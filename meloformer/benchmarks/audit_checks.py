"""Checks of trained weights and of their data that need no training: limits, and what they rest on.

Logits are compared in float64 with dense masks of the model's own rule: there rounding moves them
by far less than MAX_ROUNDING, whatever stands beside them, and a leak by far more.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.collate import Collator
from meloformer.batches.windows import Window, bar_lines
from meloformer.benchmarks.audit import Advance, Audited, AuditRow, Check, Checks
from meloformer.errors import BatchError
from meloformer.evaluation.copied_bars import (
    MIN_NOTES,
    CopyCount,
    CopySearch,
    Likeness,
    bar_contents,
)
from meloformer.evaluation.leaks import (
    LeakCount,
    Score,
    dense_score,
    look_for_neighbours,
    look_for_the_future,
)
from meloformer.evaluation.split_crossings import find_crossings
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.masks import num_summaries
from meloformer.shards.reader import SplitIndex
from meloformer.shards.sources.licences import UNKNOWN
from meloformer.tokens.hid import decode
from meloformer.tokens.windows import bar_starts, cut_window

MAX_ROUNDING = 1e-9
# Of windows in which something is changed, where bars are shorter: dense masks take memory.
_WINDOW_TOKENS = 512
_MIN_WINDOW_BARS, _MIN_WINDOW_NOTES = 2, 8
# A share of copied bars is higher than another one beyond this and three standard errors.
_SHARE_MARGIN, _STANDARD_ERRORS = 0.05, 3.0
# Runs of copied bars are as long as those of held-out music up to this many times, or so short.
_RUN_FACTOR, _SHORT_RUN = 2, 4
_MAX_HELD_OUT = 512
_LIKENESSES: tuple[Likeness, ...] = ("verbatim", "transposed")


def check_split(audited: Audited, tell: Advance) -> list[AuditRow]:
    """Nothing that is held out may stand in training."""
    is_planted = audited.config.plant == "split"
    found = find_crossings(audited.folders, is_planted=is_planted)
    measured = (
        f"{found.keys} exact copies, {found.tunes} tunes, {found.clusters} clusters of near copies"
    )
    if found.pairs is not None:
        measured += f", {found.pairs} pairs of near copies between folders"
    measured += f" of {found.num_pieces:,} pieces"
    if found.num_left_out:
        measured += f" ({found.num_left_out:,} that another folder holds out are not trained on)"
    if found.not_looked_for:
        measured += f"; near copies were never looked for in {', '.join(found.not_looked_for)}"
    return [
        AuditRow(
            check="split",
            what="what crosses the split",
            measured=measured,
            allowed="0",
            is_ok=not found.total and not found.not_looked_for,
            figures=vars(found),
        )
    ]


def check_licences(audited: Audited, tell: Advance) -> list[AuditRow]:
    """For every input somebody must have said what may be done with it.

    A licence file whose words are not known is named as unknown, for people to read, and no fault;
    an input beside which nothing lay, and of which `--licence` says nothing, is one.
    """
    stated = dict(said.partition("=")[::2] for said in audited.config.licence)
    lines, absent, unknown = [], [], []
    for folder in audited.folders:
        for entry in folder.manifest.inputs:
            if entry.licences:
                lines += [f"{entry.name}/{line}" for line in entry.licences]
                unknown += [line for line in entry.licences if line.endswith(f": {UNKNOWN}")]
            elif entry.name in stated:
                lines.append(f"{entry.name}: {stated[entry.name]} (as --licence says)")
            else:
                absent.append(entry.name)
                lines.append(f"{entry.name}: none found")
    words = "; ".join(lines)
    if absent:
        words += "; find out, and say so with --licence name=licence"
    return [
        AuditRow(
            check="licences",
            what="licences of the data",
            measured=f"{len(absent)} inputs without, {len(unknown)} unknown files: {words}",
            allowed="0 without; unknown ones are to be read",
            is_ok=not absent,
            figures={"licences": lines, "absent": absent, "unknown": unknown},
        )
    ]


LookForLeaks = Callable[[Score, Sequence[np.ndarray], np.random.Generator], Iterator[LeakCount]]


def check_leaks(
    look: LookForLeaks, check: Check, what: str, audited: Audited, tell: Advance
) -> list[AuditRow]:
    """No logit may move that does not depend on what is changed; those that do have to."""
    config = audited.config
    windows = _windows(audited)
    score = dense_score(audited.model(torch.float64), shows_all=config.plant == "leak")
    total = LeakCount()
    tell(what, 0, len(windows))
    for done, count in enumerate(look(score, windows, np.random.default_rng(config.seed)), 1):
        total += count
        tell(what, done, len(windows))
    is_blind = total.num_felt < total.num_changes
    felt = f"{total.num_felt} of {total.num_changes} changes moved logits that depend on them"
    return [
        AuditRow(
            check=check,
            what=what,
            measured=f"{total.largest:.2g} over {total.num_positions:,} positions in "
            f"{len(windows)} windows of the validation split; {felt}",
            allowed=f"{MAX_ROUNDING:g}: rounding of float64; all changes felt",
            is_ok=total.largest <= MAX_ROUNDING and not is_blind,
            figures=vars(total) | {"num_windows": len(windows)},
        )
    ]


def _windows(audited: Audited) -> list[np.ndarray]:
    """Validation windows of several bars, spread over the folders and their pieces."""
    chosen: list[np.ndarray] = []
    for number, folder in enumerate(audited.folders):
        index, left = folder.split("valid"), len(audited.folders) - number
        wanted = -(-(audited.config.num_windows - len(chosen)) // left)
        chosen += _windows_of(index, audited.run.settings["max_seq_len"], wanted)
    if len(chosen) < 2:
        raise BatchError(
            f"--data {' '.join(audited.config.data)}: found {len(chosen)} validation windows of "
            f"{_MIN_WINDOW_BARS} bars and {_MIN_WINDOW_NOTES} notes, allowed 2 or more; build the "
            "shards with another --valid_share, or --skip future neighbour"
        )
    return chosen


def _windows_of(index: SplitIndex, max_seq_len: int, wanted: int) -> list[np.ndarray]:
    """Windows of as many bars as fit, from the middle of pieces; fewer where there are not as many.

    Longer ones where the bars of a piece are so long that a window would hold one alone.
    """
    collator = Collator(index=index, attributes=ALL_ATTRIBUTES)
    # More than are wanted: some may hold too little to change anything in.
    last_piece = max(index.num_pieces - 1, 0)
    pieces = np.unique(np.linspace(0, last_piece, min(2 * wanted, index.num_pieces)).astype(int))
    chosen: list[np.ndarray] = []
    for piece in pieces.tolist():
        lines, tokens = bar_lines(index, piece), min(_WINDOW_TOKENS, max_seq_len)
        first = min(lines.num_bars // 2, max(lines.num_bars - _MIN_WINDOW_BARS, 0))
        while (last := lines.fit(first, tokens, num_summaries(tokens))) < first + _MIN_WINDOW_BARS:
            if tokens >= max_seq_len:
                break
            tokens = min(2 * tokens, max_seq_len)
        last = min(last, lines.num_bars)
        if last < first + _MIN_WINDOW_BARS:
            continue
        ids = collator.window_ids(0, Window(piece, first, last))
        if decode(ids).num_notes >= _MIN_WINDOW_NOTES:
            chosen.append(ids)
        if len(chosen) == wanted:
            break
    return chosen


def check_copies(audited: Audited, tell: Advance) -> list[AuditRow]:
    """Generated bars may stand in training about as often as those of held-out music do."""
    config = audited.config
    generated = _generated(audited, tell)
    held_out = _held_out(audited)
    trained_on = [folder.split("train") for folder in audited.folders]
    num_trained = sum(index.num_pieces for index in trained_on)
    searches = {
        likeness: CopySearch([bar_contents(m, likeness) for m in [*generated, *held_out]])
        for likeness in _LIKENESSES
    }
    for done, music in enumerate(_music_of(trained_on), 1):
        for likeness, search in searches.items():
            search.look_into([bar_contents(music, likeness)])
        tell("bars of training pieces", done, num_trained)
    new, old = slice(len(generated)), slice(len(generated), None)
    rows = []
    for likeness, search in searches.items():
        found, base = search.count(new), search.count(old)
        share, run = allowed_copies(base, num_pieces=len(generated))
        is_blind = lets_all_through(share, run, num_bars=config.bars)
        hint = "; copies of every bar keep to this: hold out more pieces" if is_blind else ""
        rows.append(
            AuditRow(
                check="copies",
                what=f"generated bars that stand in training, {likeness}",
                measured=f"{100 * found.share:.1f} % of {found.num_bars.sum():,} bars of "
                f"{MIN_NOTES} notes or more in {len(generated)} pieces, "
                f"{found.longest_run} in a row at most",
                allowed=f"{100 * share:.1f} %, {run} in a row; of held-out pieces "
                f"{100 * base.share:.1f} % of {base.num_bars.sum():,} bars do, "
                f"{base.longest_run} in a row{hint}",
                # Pieces without a single bar to look at show nothing.
                is_ok=not is_blind
                and found.share <= share
                and found.longest_run <= run
                and bool(found.num_bars.sum()),
                figures={
                    "share": found.share,
                    "longest_run": found.longest_run,
                    "bars": int(found.num_bars.sum()),
                    "pieces": len(generated),
                    "held_out_share": base.share,
                    "held_out_longest_run": base.longest_run,
                    "held_out_bars": int(base.num_bars.sum()),
                    "training_pieces": num_trained,
                    "bars_a_piece": config.bars,
                },
            )
        )
    return rows


def allowed_copies(base: CopyCount, *, num_pieces: int) -> tuple[float, int]:
    """Share of copied bars, and longest run of them, up to which new music copies nothing.

    Held-out music says how often a bar recurs by chance and by style. New music may lie above that
    by what three standard errors of both shares over pieces allow, and five points; its runs may
    be twice as long as the longest of held-out music, and four bars at least.

    Args:
        base: of held-out music, in stretches as long as the new pieces.
        num_pieces: new pieces.
    """
    told = max(int((base.num_bars > 0).sum()), 1)
    spread = base.spread if told > 1 else math.sqrt(base.share * (1 - base.share))
    error = spread * math.sqrt(1 / told + 1 / num_pieces)
    share = base.share + _SHARE_MARGIN + _STANDARD_ERRORS * error
    return min(share, 1.0), max(_RUN_FACTOR * base.longest_run, _SHORT_RUN)


def lets_all_through(share: float, run: int, *, num_bars: int) -> bool:
    """Whether copies from the first bar to the last keep to the limits of `allowed_copies`.

    So it is where held-out music stands in training as a whole: then a check would say nothing.

    Args:
        share: of bars, that is allowed.
        run: of bars, that is allowed.
        num_bars: of a new piece.
    """
    return share >= 1 and run >= num_bars


def _generated(audited: Audited, tell: Advance) -> list[QuantisedPiece]:
    """New pieces; with the plant, stretches of training pieces."""
    config = audited.config
    if config.plant == "copy":
        index = audited.folders[0].split("train")
        pieces = np.linspace(0, index.num_pieces - 1, config.num_pieces).astype(np.int64)
        return [_stretches(index.read(piece), config.bars)[0] for piece in pieces.tolist()]
    model = audited.model()
    most = config.num_pieces * model.config.max_seq_len
    what = f"{config.num_pieces} pieces, tokens"
    ids = generate(
        model,
        ControlConfig(bars=config.bars),
        SamplingConfig(),
        num_samples=config.num_pieces,
        seed=config.seed,
        on_token=lambda count: tell(what, count, most),
        stop=lambda count: count >= most,
    )
    return [decode(piece) for piece in ids if len(bar_starts(piece)) > 1]


def _held_out(audited: Audited) -> list[QuantisedPiece]:
    """Stretches of validation pieces, as long as the new ones, from all over the split."""
    found: list[QuantisedPiece] = []
    most = _MAX_HELD_OUT // len(audited.folders)
    for folder in audited.folders:
        index = folder.split("valid")
        chosen = np.unique(np.linspace(0, index.num_pieces - 1, most).astype(np.int64))
        for piece in chosen.tolist() if index.num_pieces else ():
            found += _stretches(index.read(piece), audited.config.bars)
    return found


def _stretches(ids: np.ndarray, num_bars: int) -> list[QuantisedPiece]:
    """A whole piece in parts of so many bars, the last one perhaps shorter."""
    starts = bar_starts(ids)
    last = len(starts) - 1
    firsts = range(0, last, num_bars)
    return [decode(cut_window(ids, a, min(a + num_bars, last), starts)) for a in firsts]


def _music_of(indices: Sequence[SplitIndex]) -> Iterator[QuantisedPiece]:
    for index in indices:
        for piece in range(index.num_pieces):
            yield decode(index.read(piece))


CHECKS_WITHOUT_TRAINING: Checks = {
    "split": check_split,
    "licences": check_licences,
    "future": partial(
        check_leaks, look_for_the_future, "future", "logits that a later token moves"
    ),
    "neighbour": partial(
        check_leaks, look_for_neighbours, "neighbour", "logits that a packed neighbour moves"
    ),
    "copies": check_copies,
}
