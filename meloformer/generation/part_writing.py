"""Write some bars of a sequence whose other tokens are given: cached, and under the grammar.

Bar by bar, what is given is fed and what is not is drawn: the bar token where no chord is given,
and behind the given instruments those that may be written. Each run of given tokens goes through
the model at once.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from meloformer.generation.cache import DecodeCache
from meloformer.generation.labeller import Labeller
from meloformer.generation.moved_mass import move_mass
from meloformer.generation.sampling import SamplingConfig, sample_tokens
from meloformer.generation.splicing import notes_of_bar, sounding
from meloformer.midi.grid import DRUMS
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.filling_grammar import grammar_of
from meloformer.tokens.keeper import last_bar_to_enter
from meloformer.tokens.vocabulary import EOS, FILL, INDEX_OF, KIND_OF, OFFSET, VOCAB_SIZE, Kind

_IS_BAR = KIND_OF == Kind.BAR
_IS_HEADER = np.isin(KIND_OF, (Kind.METRE, Kind.TEMPO))
# (V,) what says that a bar is over: the next one, or the end of what is written.
_ENDS_BAR = _IS_BAR.copy()
_ENDS_BAR[[EOS, FILL]] = True
_IS_INSTRUMENT = KIND_OF == Kind.INSTRUMENT
_IS_MELODIC = _IS_INSTRUMENT & (INDEX_OF != DRUMS)


@dataclass(frozen=True, kw_only=True)
class GivenBar:
    """A bar to be written.

    Args:
        tokens: given: its bar token, metre and tempo where they change, given instruments.
        draws_chord: the bar token is drawn in place of the given one.
    """

    tokens: tuple[int, ...]
    draws_chord: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is to be written.

    Args:
        context: (T,) int64 of all tokens before the first of the bars; a beginning under the
            grammar.
        bars: those to be written, one or more.
        instruments: that may be written; 0 drums, 1 + program otherwise.
        kept: the music that stays, all bars of the piece: no note begins where it holds one of the
            same instrument and pitch.
        first_bar: of `bars`, in that piece.
        needs_note: the last bar gets a note.
        asked: instruments that play at least once, ascending; none waits for longer than where a
            whole piece is written.
    """

    context: np.ndarray
    bars: tuple[GivenBar, ...]
    instruments: tuple[int, ...]
    kept: QuantisedPiece
    first_bar: int
    needs_note: bool = False
    asked: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A part as it was drawn.

    Args:
        ids: (T,) int64 of context and bars, up to the end of the last bar.
        nats: of what was drawn, under the model's own distribution without mask, temperature and
            cut-offs.
        num_notes: drawn.
    """

    ids: np.ndarray
    nats: float
    num_notes: int


def given_bars(ids: np.ndarray) -> tuple[GivenBar, ...]:
    """The bars of some tokens, for a `Part`.

    What the kept instruments play tells a bar's chord; where they are drums or none, it is drawn.

    Args:
        ids: (T,) bars one after the other, the first one's bar token first.
    """
    edges = [*np.flatnonzero(_IS_BAR[ids]).tolist(), len(ids)]
    return tuple(
        GivenBar(tokens=tuple(ids[a:b].tolist()), draws_chord=not _IS_MELODIC[ids[a:b]].any())
        for a, b in pairwise(edges)
    )


def write_part(
    model: MuseFormer,
    part: Part,
    sampling: SamplingConfig,
    *,
    seed: int = 0,
    on_token: Callable[[], None] | None = None,
) -> WrittenPart:
    """Draw a part.

    Args:
        model: in evaluation mode.
        part: what is given.
        sampling: temperatures, cut-offs, and how many bars may not come again; of those, what
            `part.instruments` play.
        seed: of the draws.
        on_token: called after each token that was drawn.
    """
    dice = _Dice(sampling, seed, on_token)
    reader = _Reader(model)
    logits_V = reader.read(part.context.tolist())
    grammar = grammar_of(part.context.tolist())
    mask = _BarMask(part, sampling.no_repeat_bars)
    for number, bar in enumerate(part.bars):
        given = list(bar.tokens)
        if bar.draws_chord:
            # That a bar comes was known, or drawn as the end of the one before.
            is_bar = torch.from_numpy(_IS_BAR).to(logits_V.device)
            of_bars_V = logits_V.masked_fill(~is_bar, -torch.inf)
            given[0] = dice.draw(of_bars_V, grammar.allowed() & _IS_BAR)
        logits_V = reader.read(given)
        for token_id in given:
            grammar.advance(token_id)
        mask.begin(number, has_note=bool((KIND_OF[given] == Kind.PITCH).any()))
        while True:
            token_id = dice.draw(*_with_one_end(logits_V, mask.narrowed(grammar.allowed())))
            if _ENDS_BAR[token_id]:
                break
            grammar.advance(token_id)
            mask.take(token_id)
            logits_V = reader.read([token_id])
    return WrittenPart(ids=np.array(reader.ids), nats=dice.nats, num_notes=mask.num_notes)


class _Dice:
    """Draws tokens, and adds up how unlikely they were."""

    def __init__(
        self, sampling: SamplingConfig, seed: int, on_token: Callable[[], None] | None
    ) -> None:
        self.nats = 0.0
        self._sampling, self._on_token = sampling, on_token
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, logits_V: Tensor, allowed_V: np.ndarray) -> int:
        uniform_B = torch.rand(1, generator=self._generator)
        allowed_BV = torch.from_numpy(allowed_V)[None]
        moved_BV = move_mass(logits_V[None], allowed_BV)
        token_id = int(sample_tokens(moved_BV, allowed_BV, self._sampling, uniform_B)[0])
        self.nats -= float(torch.log_softmax(logits_V.float(), dim=0)[token_id])
        if self._on_token is not None:
            self._on_token()
        return token_id


class _BarMask:
    """What may be drawn in a bar besides what the grammar says.

    Args:
        part: what is written.
        no_repeat_bars: a bar may not have the notes of one of so many before it.
    """

    def __init__(self, part: Part, no_repeat_bars: int) -> None:
        self.num_notes = 0
        self._part = part
        # Metre and tempo are given: where none stands, none is to change.
        self._may_come = ~_IS_HEADER
        self._may_come &= ~_IS_INSTRUMENT | np.isin(INDEX_OF, part.instruments)
        earlier = range(max(0, part.first_bar - no_repeat_bars), part.first_bar)
        self._before = deque(
            (notes_of_bar(part.kept, bar, part.instruments) for bar in earlier),
            maxlen=no_repeat_bars,
        )
        self._notes: list[tuple[int, int, int]] = []
        self._bar = -1
        self._must_sound = False
        self._silent = list(part.asked)
        self._is_due = False
        self._instrument, self._onset = -1, 0
        self._sounding_V = np.zeros(VOCAB_SIZE, dtype=bool)

    def begin(self, number: int, *, has_note: bool) -> None:
        """Go to one of the part's bars, the given tokens of which may hold a note."""
        if number:
            self._before.append(self._notes)
        self._notes, self._bar = [], self._part.first_bar + number
        self._instrument = -1
        self._is_due = number >= last_bar_to_enter(len(self._part.bars))
        is_last = number == len(self._part.bars) - 1
        self._must_sound = self._part.needs_note and is_last and not has_note

    def take(self, token_id: int) -> None:
        """Take a token of the bar."""
        kind, index = KIND_OF[token_id], int(INDEX_OF[token_id])
        if kind == Kind.INSTRUMENT:
            self._instrument = index
        elif kind == Kind.ONSET:
            self._onset = index
            pitches = sounding(self._part.kept, self._bar, self._instrument, index)
            self._sounding_V[:] = False
            self._sounding_V[OFFSET[Kind.PITCH] + pitches] = True
        elif kind == Kind.PITCH:
            self._notes.append((self._instrument, self._onset, index))
            self.num_notes += 1
            if self._instrument in self._silent:
                self._silent.remove(self._instrument)

    def narrowed(self, allowed_V: np.ndarray) -> np.ndarray:
        """What may come of what the grammar allows."""
        allowed_V = allowed_V & self._may_come
        if self._instrument < 0:
            # What was given is whole: nobody adds to what a kept instrument plays.
            allowed_V &= _ENDS_BAR | _IS_INSTRUMENT
        if self._is_due and self._silent:
            # Instruments ascend: nobody comes before those who are still to play.
            comes_later = _IS_INSTRUMENT & (self._silent[0] < INDEX_OF)
            allowed_V &= ~(_ENDS_BAR | comes_later)
        # Where nothing else is left the grammar goes first.
        allowed_V = _without(allowed_V, self._sounding_V)
        if self._must_sound and not self._notes:
            return allowed_V & ~_ENDS_BAR
        if self._notes and self._notes in self._before:
            return _without(allowed_V, _ENDS_BAR)
        return allowed_V


def _without(allowed_V: np.ndarray, forbidden_V: np.ndarray) -> np.ndarray:
    """The rest, where there is one."""
    left_V = allowed_V & ~forbidden_V
    return left_V if left_V.any() else allowed_V


class _Reader:
    """A sequence that grows, and what the model expects behind it."""

    def __init__(self, model: MuseFormer) -> None:
        self.ids: list[int] = []
        self._cache = DecodeCache(model, 1)
        self._labeller: Labeller | None = None

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Take one token or more; logits (V,) of the next one."""
        self.ids += tokens
        new_T = np.array(tokens)
        labels_4T = self._label(new_T)
        # What goes through the cache at once lies in one bar.
        bars = np.flatnonzero(_IS_BAR[new_T])
        edges = [0, *bars[bars > 0].tolist(), len(new_T)]
        for first, last in pairwise(edges):
            if _IS_BAR[new_T[first]] and labels_4T[0, first] > 0:
                self._cache.close_bar(np.array([0]), labels_4T[0, [first]] - 1)
            logits_BV = self._cache.add(
                new_T[None, first:last], labels_4T[:, None, first:last], np.array([True])
            )
        return logits_BV[0]

    def _label(self, new_T: np.ndarray) -> np.ndarray:
        """Labels (4, T) of new tokens alone: a sequence is not read again for each of them."""
        if self._labeller is None:
            self._labeller = Labeller(new_T[None])
            return self._labeller.prefix[:, 0]
        return np.concatenate([self._labeller.advance(id_1) for id_1 in new_T[:, None]], axis=1)


def _with_one_end(logits_V: Tensor, allowed_V: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """One token in place of all that end a bar, as likely as they are together.

    Which chord comes next is given, or drawn once it is known that a bar comes; a bar that could
    only end with one chord of many would hardly ever end.
    """
    ends = np.flatnonzero(allowed_V & _ENDS_BAR)
    if not len(ends):
        return logits_V, allowed_V
    logits_V, allowed_V = logits_V.clone(), allowed_V & ~_ENDS_BAR
    places = torch.from_numpy(ends).to(logits_V.device)
    together = logits_V[places].logsumexp(0)
    logits_V[places] = -torch.inf
    # The last is a bar token wherever one is allowed: to it goes what forbidden players had.
    logits_V[ends[-1]] = together
    allowed_V[ends[-1]] = True
    return logits_V, allowed_V
