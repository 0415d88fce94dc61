"""Does a trained model see what it must not: the future, or a neighbour in its row?

Real pieces are changed a little and go through the encoder and the collator again, so that every
label of a changed token is computed anew: what leaks through bar, instrument, onset or index shows
as well as what leaks through the ids. Logits that do depend on a change are looked at too: a check
that sees nothing move proves nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from meloformer.batches.collate import collate_rows
from meloformer.evaluation.likelihood import row_length
from meloformer.midi.grid import DURATION_STEPS
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.attention import AttentionPlan, build_plan
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import read_prefix
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.vocabulary import EOS, KIND_OF, OFFSET, Kind
from meloformer.tokens.windows import bar_starts

# Changes of each kind to a window.
_CHANGES_OF_A_KIND = 2
# Rows that are scored at once: dense masks and float64 take memory.
_ROWS_AT_ONCE = 2
_OCTAVE = 12
# What moves less than this has felt nothing of a change.
_FELT = 1e-6

# Windows side by side, to the (T, V) logits of their tokens.
Score = Callable[[Sequence[Sequence[np.ndarray]]], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class LeakCount:
    """What some changes did to logits.

    Args:
        largest: largest move of a logit that must not move.
        num_positions: positions whose logits must not move, over all changes.
        num_changes: changes that were made to a piece.
        num_felt: of them, those that moved logits which do depend on them.
    """

    largest: float = 0.0
    num_positions: int = 0
    num_changes: int = 0
    num_felt: int = 0

    def __add__(self, other: "LeakCount") -> "LeakCount":
        return LeakCount(
            largest=max(self.largest, other.largest),
            num_positions=self.num_positions + other.num_positions,
            num_changes=self.num_changes + other.num_changes,
            num_felt=self.num_felt + other.num_felt,
        )


def dense_score(model: MuseFormer, *, shows_all: bool = False) -> Score:
    """Logits by the rule as a dense mask, in the dtype of the weights.

    Args:
        model: in evaluation mode.
        shows_all: let every token read its whole row, as a broken mask would.
    """
    rule, device = rule_of(model.config.rule), model.token_embedding.weight.device

    def score(rows: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        seq_len = row_length([np.concatenate(list(row)) for row in rows])
        logits = []
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            batch = collate_rows(some, seq_len).to(device)
            layout = batch.layout if model.config.summaries else batch.layout.without_summaries()
            plan = build_plan(layout, rule)
            with torch.no_grad():
                logits_BTV = model(batch.ids_BT, layout, _opened(plan) if shows_all else plan)
            for row, logits_TV in zip(some, logits_BTV, strict=True):
                logits.append(logits_TV[: sum(map(len, row))].cpu())
        return logits

    return score


def _opened(plan: AttentionPlan) -> AttentionPlan:
    """The same calls with every token in sight of every token of its row."""
    return replace(
        plan,
        update=tuple(
            replace(call, mask=torch.ones_like(call.mask))
            for call in plan.update
            if isinstance(call.mask, Tensor)
        ),
    )


def look_for_the_future(
    score: Score, windows: Sequence[np.ndarray], random: np.random.Generator
) -> Iterator[LeakCount]:
    """Change each window at several places, behind a neighbour; earlier logits must stay.

    Args:
        score: the model.
        windows: token ids, two or more; each decodes alone and has two bars or more.
        random: chooses the places.

    Yields:
        What the changes to one window did.
    """
    for number, window in enumerate(windows):
        before, ids = windows[number - 1], _whole(decode(window), window)
        changed = [*_other_music(ids, random), *_other_tokens(ids, random)]
        expected, *found = score([[before, ids], *([before, other] for other in changed)])
        count = LeakCount()
        for other, logits_TV in zip(changed, found, strict=True):
            both = min(len(ids), len(other))
            differs = ids[:both] != other[:both]
            first = len(before) + (int(differs.argmax()) if differs.any() else both - 1)
            count += LeakCount(
                largest=_move(logits_TV[:first], expected[:first]),
                num_positions=first,
                num_changes=1,
                num_felt=_is_felt(logits_TV[first], expected[first]),
            )
        yield count


def look_for_neighbours(
    score: Score, windows: Sequence[np.ndarray], random: np.random.Generator
) -> Iterator[LeakCount]:
    """Put other windows into the row of each window, before and behind it; its logits must stay.

    Args:
        score: the model.
        windows: token ids, two or more; each decodes alone and has two bars or more.
        random: chooses the places at which a neighbour is changed.

    Yields:
        What other neighbours did to one window.
    """
    for number, ids in enumerate(windows):
        before = windows[number - 1]
        others = _other_tokens(before, random)
        rows = [[before, ids], [ids], [ids, before], *([other, ids] for other in others)]
        expected, alone, leading, *found = score(rows)
        own = expected[len(before) :]
        moved, felt = [_move(alone, own), _move(leading[: len(ids)], own)], []
        for other, logits_TV in zip(others, found, strict=True):
            moved.append(_move(logits_TV[len(other) :], own))
            last = min(len(other), len(before))
            felt.append(_is_felt(logits_TV[:last], expected[:last]))
        yield LeakCount(
            largest=max(moved),
            num_positions=len(ids) * len(moved),
            num_changes=len(felt),
            num_felt=sum(felt),
        )


def _move(found: Tensor, expected: Tensor) -> float:
    if not len(found):
        return 0.0
    largest = float((found.double() - expected.double()).abs().max())
    # No number at all is the worst of moves, and compares as none.
    return largest if largest == largest else float("inf")


def _is_felt(found: Tensor, expected: Tensor) -> bool:
    return _move(found, expected) > _FELT


def _whole(music: QuantisedPiece, window: np.ndarray) -> np.ndarray:
    """Music as a sequence with the prefix of a window, whatever the music has become."""
    return encode(music, read_prefix(window))


def _other_music(ids: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """The same piece with another pitch, another length and one note less, encoded again."""
    music = decode(ids)
    changed = []
    for note in random.choice(
        music.num_notes, min(_CHANGES_OF_A_KIND, music.num_notes), replace=False
    ):
        pitch, duration = music.pitch.copy(), music.duration_steps.copy()
        pitch[note] += _OCTAVE if pitch[note] < 64 else -_OCTAVE
        duration[note] = (
            DURATION_STEPS[0] if duration[note] > DURATION_STEPS[0] else (DURATION_STEPS[-1])
        )
        left = np.delete(np.arange(music.num_notes), note)
        edits = [replace(music, pitch=pitch), replace(music, duration_steps=duration)]
        # The last bar of a piece has notes.
        if len(left) and (music.bar[left] == music.num_bars - 1).any():
            edits.append(_notes(music, left))
        for edit in edits:
            other = _whole(_notes(edit, _in_order(edit)), ids)
            if not np.array_equal(other, ids):
                changed.append(other)
    return changed


def _in_order(music: QuantisedPiece) -> np.ndarray:
    """Notes in canonical order, each place once."""
    places = np.stack([music.bar, music.instrument, music.onset_steps, music.pitch])
    return np.unique(places, axis=1, return_index=True)[1]


def _notes(music: QuantisedPiece, chosen: np.ndarray) -> QuantisedPiece:
    names = ("bar", "instrument", "onset_steps", "pitch", "duration_steps", "velocity")
    return replace(music, **{name: getattr(music, name)[chosen] for name in names})


def _other_tokens(ids: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Single tokens become others, which a model reads no less if no music sounds like that."""
    starts = bar_starts(ids)
    notes = np.flatnonzero(KIND_OF[ids] == Kind.PITCH)
    chosen = random.choice(notes, min(2 * _CHANGES_OF_A_KIND, len(notes)), replace=False)
    pairs: list[tuple[int, int]] = [
        (note, OFFSET[Kind.PITCH] + int(random.integers(128))) for note in chosen
    ]
    # A note becomes a bar: every label behind it moves on to the next bar.
    pairs += [(note, OFFSET[Kind.BAR]) for note in chosen[:_CHANGES_OF_A_KIND]]
    # A bar becomes a note: two bars melt into one. Another instrument begins; the end comes early.
    pairs += [(bar, OFFSET[Kind.PITCH] + 60) for bar in starts[1:-1][-_CHANGES_OF_A_KIND:]]
    pairs += [(chosen[0], OFFSET[Kind.INSTRUMENT] + 99), (chosen[-1], EOS)]
    changed = []
    for position, token in pairs:
        if ids[position] != token:
            other = ids.copy()
            other[position] = token
            changed.append(other[: position + 1] if token == EOS else other)
    return changed
