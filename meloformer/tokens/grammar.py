"""The grammar of HID: a state machine that drives sampling, and a check of finished sequences.

Onsets, pitches and instruments strictly ascend and a statement that changes nothing is forbidden,
so every bar is finite and music has one spelling only.
"""

from collections.abc import Iterable

import numpy as np

from meloformer.errors import ConfigError, TokenError
from meloformer.midi.grid import METRE_STEPS
from meloformer.tokens.attributes import ATTRIBUTE_KINDS
from meloformer.tokens.keeper import Keeper
from meloformer.tokens.vocabulary import (
    BLOCK_SIZES,
    BOS,
    CONTINUE,
    EOS,
    INDEX_OF,
    KIND_OF,
    OFFSET,
    VOCAB_SIZE,
    Kind,
    token_name,
)
from meloformer.tokens.wishes import NO_WISHES, Wishes

_BLOCK = {kind: slice(OFFSET[kind], OFFSET[kind] + BLOCK_SIZES[kind]) for kind in Kind}
_AFTER_VELOCITY = (Kind.PITCH, Kind.ONSET, Kind.INSTRUMENT, Kind.BAR, Kind.CONTROL)

# What may follow inside the bars; of the control tokens only EOS, and only after a note.
FOLLOWS: dict[Kind, tuple[Kind, ...]] = {
    Kind.BAR: (Kind.METRE, Kind.TEMPO, Kind.INSTRUMENT, Kind.BAR),
    Kind.METRE: (Kind.TEMPO, Kind.INSTRUMENT, Kind.BAR),
    Kind.TEMPO: (Kind.INSTRUMENT, Kind.BAR),
    Kind.INSTRUMENT: (Kind.ONSET,),
    Kind.ONSET: (Kind.PITCH,),
    Kind.PITCH: (Kind.DURATION, Kind.VELOCITY, *_AFTER_VELOCITY),
    Kind.DURATION: (Kind.VELOCITY, *_AFTER_VELOCITY),
    Kind.VELOCITY: _AFTER_VELOCITY,
}

_NOT_STATED = -1
# Of every id, looked up several times as fast as in an array.
_READ = [
    (Kind(kind), index) for kind, index in zip(KIND_OF.tolist(), INDEX_OF.tolist(), strict=True)
]


class GrammarState:
    """What may come next, token by token.

    The wishes bind what follows `prefix`, not the prefix itself; `num_bars` counts its bars too.

    Args:
        prefix: ids to start from: the beginning of any sequence that follows the grammar.
        wishes: what the rest shall be.

    Raises:
        ConfigError: wishes that no sequence with this prefix can fulfil.
        TokenError: `prefix` breaks the grammar.
    """

    def __init__(self, prefix: Iterable[int] = (), wishes: Wishes = NO_WISHES) -> None:
        # What may come next, once somebody has asked; whoever draws a token asks before it comes.
        self._mask: np.ndarray | None = None
        self.num_tokens = 0
        self.num_bars = 0
        self.is_finished = False
        self._last: Kind | None = None
        self._metre = self._tempo = _NOT_STATED
        self._instrument = self._onset = self._pitch = _NOT_STATED
        self._duration = self._velocity = _NOT_STATED

        # The prefix is read as it is.
        self._wishes = NO_WISHES
        self._keeper: Keeper | None = None
        prefix = list(prefix)
        self._may_play = np.ones(BLOCK_SIZES[Kind.INSTRUMENT], dtype=bool)
        for token_id in prefix:
            self.advance(int(token_id))
        self._wish(wishes)
        if not wishes.are_kept_by_kind:
            self._keeper = Keeper(wishes)
            for token_id in prefix:
                self._keeper.take(Kind(int(KIND_OF[token_id])), int(INDEX_OF[token_id]))

    def allowed(self) -> np.ndarray:
        """Mask of the ids that may come next; none after EOS.

        Returns:
            (V,) bool, the caller's own.
        """
        return self._known().copy()

    def _known(self) -> np.ndarray:
        if self._mask is None:
            self._mask = self._next()
        return self._mask

    def _next(self) -> np.ndarray:
        """(V,) bool, from the state alone."""
        mask = np.zeros(VOCAB_SIZE, dtype=bool)
        if self._last is None:
            mask[BOS] = mask[CONTINUE] = True
        elif self.is_finished:
            pass
        elif self.num_bars == 0:
            for kind in ATTRIBUTE_KINDS:
                if kind > self._last or kind == Kind.INSTRUMENT:
                    self._allow(mask, kind)
            self._allow(mask, Kind.BAR)
        else:
            due = self._due()
            for kind in FOLLOWS[self._last] if due is None else (due,):
                self._allow(mask, kind)
        if self._keeper is not None:
            self._keeper.narrow(mask, self._last)
        return mask

    def advance(self, token_id: int) -> None:
        """Take one token.

        Raises:
            TokenError: it is not allowed here.
        """
        if not 0 <= token_id < VOCAB_SIZE or not self._known()[token_id]:
            raise self.refusal(token_id)
        self._mask = None
        kind, index = _READ[token_id]
        self.num_tokens += 1
        self._last = kind
        if kind is Kind.BAR:
            self.num_bars += 1
            self._instrument = _NOT_STATED
        elif kind is Kind.INSTRUMENT:
            self._instrument = index
            self._onset = self._duration = self._velocity = _NOT_STATED
        elif kind is Kind.ONSET:
            self._onset = index
            self._pitch = _NOT_STATED
        elif kind is Kind.PITCH:
            self._pitch = index
        elif kind is Kind.DURATION:
            self._duration = index
        elif kind is Kind.VELOCITY:
            self._velocity = index
        elif kind is Kind.METRE and self.num_bars:
            self._metre = index
        elif kind is Kind.TEMPO and self.num_bars:
            self._tempo = index
        elif token_id == EOS:
            self.is_finished = True
        if self._keeper is not None:
            self._keeper.take(kind, index)

    @property
    def is_complete(self) -> bool:
        """Whether the sequence so far decodes: no bar, onset or note is left unfinished."""
        return self.num_bars > 0 and (self.is_finished or self._due() is None)

    def refusal(self, token_id: int | None) -> TokenError:
        """The error that says what was found here (None: the end) and what is allowed."""
        if token_id is None:
            found = "the end of the sequence"
        elif 0 <= token_id < VOCAB_SIZE:
            found = f"{token_name(token_id)} (id {token_id})"
        else:
            found = f"id {token_id} (the vocabulary ends at {VOCAB_SIZE - 1})"
        return TokenError(
            f"tokens break the grammar at position {self.num_tokens}: found {found}; "
            f"allowed here: {_describe(self.allowed())}; encode the piece again, or sample under "
            "the mask of the grammar"
        )

    def _due(self) -> Kind | None:
        """The kind that must come next inside the bars; None where the grammar leaves a choice."""
        last = self._last
        if last is Kind.BAR and _must_state(self._metre, self._wishes.metre):
            return Kind.METRE
        if last in (Kind.BAR, Kind.METRE) and _must_state(self._tempo, self._wishes.tempo):
            return Kind.TEMPO
        if last is Kind.INSTRUMENT:
            return Kind.ONSET
        if last is Kind.ONSET:
            return Kind.PITCH
        if last is Kind.PITCH and self._duration == _NOT_STATED:
            return Kind.DURATION
        if last is Kind.DURATION and self._velocity == _NOT_STATED:
            return Kind.VELOCITY
        return None

    def _allow(self, mask: np.ndarray, kind: Kind) -> None:
        """Mark the tokens of one kind that its own order and the wishes permit."""
        block = mask[_BLOCK[kind]]
        if kind is Kind.PITCH:
            block[self._pitch + 1 :] = True
        elif kind is Kind.ONSET:
            block[self._onset + 1 : METRE_STEPS[self._metre]] = True
        elif kind is Kind.INSTRUMENT:
            free = slice(self._instrument + 1, None)
            block[free] = self._may_play[free]
        elif kind is Kind.DURATION:
            _allow_change(block, self._duration)
        elif kind is Kind.VELOCITY:
            _allow_change(block, self._velocity)
        elif kind is Kind.METRE:
            _allow_change(block, self._metre, self._wishes.metre)
        elif kind is Kind.TEMPO:
            _allow_change(block, self._tempo, self._wishes.tempo)
        elif kind is Kind.BAR:
            wished = self._wishes.num_bars
            block[:] = wished is None or self.num_bars < wished
        elif kind is Kind.CONTROL:
            block[EOS] = self._wishes.num_bars in (None, self.num_bars)
        else:
            block[:] = True

    def _wish(self, wishes: Wishes) -> None:
        wished, begun = wishes.num_bars, self.num_bars
        if wished is not None and (wished < begun or (self.is_finished and wished != begun)):
            state = f"{begun} bars and is finished" if self.is_finished else f"{begun} bars"
            raise ConfigError(
                f"{wished} bars wished: the prefix holds {state}; allowed: no fewer than the "
                "prefix; wish for more or start from fewer"
            )
        if begun and wishes.bind_whole_piece:
            raise ConfigError(
                f"who plays, or how many notes, is wished for: the prefix holds {begun} bars; "
                "allowed: a prefix without bars"
            )
        if wishes.instruments is not None:
            self._may_play[:] = False
            self._may_play[list(wishes.instruments)] = True
        self._wishes = wishes


def _must_state(in_force: int, wished: int | None) -> bool:
    return in_force == _NOT_STATED or (wished is not None and wished != in_force)


def _allow_change(block: np.ndarray, in_force: int, wished: int | None = None) -> None:
    if wished is None:
        block[:] = True
    else:
        block[wished] = True
    if in_force != _NOT_STATED:
        block[in_force] = False


def _describe(mask: np.ndarray) -> str:
    """First and last allowed token of each kind, and how many they are."""
    parts = []
    for kind in Kind:
        ids = np.flatnonzero(mask[_BLOCK[kind]]) + OFFSET[kind]
        if len(ids) == 1:
            parts.append(token_name(ids[0]))
        elif len(ids):
            parts.append(f"{token_name(ids[0])}..{token_name(ids[-1])} ({len(ids)})")
    return ", ".join(parts) or "nothing, the sequence ended with EOS"
