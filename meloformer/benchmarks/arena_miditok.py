"""MidiTok's REMI and Octuple on our grid: quantised music to their ids, and back.

The tokenizers are MidiTok's own, asked for a grid that holds ours: positions fine enough for every
denominator that occurs, every duration of our table, as many velocities and tempos as we have.
Ids that no music on our grid can have (positions and durations between our steps) are left out of
the vocabulary, so that no model spends parameters on them.
"""

import warnings
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from importlib.util import find_spec
from math import lcm
from typing import Any, Literal

import numpy as np

from meloformer.errors import ConfigError, MidiError
from meloformer.midi.grid import (
    DURATION_STEPS,
    METRES,
    STEPS_PER_QUARTER,
    TEMPOS_BPM,
    VELOCITIES,
    metre_steps,
)
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.midi.write import to_score

Encoding = Literal["remi", "octuple"]

# First ids of every field; CONTINUE begins a window that does not start its piece.
PAD, BOS, EOS, CONTINUE = range(4)
_SPECIAL = ["PAD", "BOS", "EOS", "CONTINUE"]
_STEPS_PER_WHOLE = 4 * STEPS_PER_QUARTER
# MidiTok takes it for granted.
_COMMON_METRE = (4, 4)


class MidiTokEncoding:
    """One of MidiTok's tokenizers for music in certain metres.

    Sequences are (T, F) int64 with F fields a token: one for REMI, one for each property of a note
    for Octuple.

    Args:
        kind: which.
        metres: indices into METRES that may occur.
        max_bars: most bars of a sequence; Octuple numbers them.

    Raises:
        ConfigError: MidiTok is not installed.
    """

    def __init__(self, kind: Encoding, metres: Iterable[int], max_bars: int) -> None:
        if find_spec("miditok") is None:
            raise ConfigError(
                f"--systems {kind} needs the extra `bench`; install it with "
                "`pip install -c constraints.txt -e '.[bench]'`"
            )
        import miditok

        self.kind = kind
        self._metres = sorted({_COMMON_METRE, *(METRES[index] for index in metres)})
        denominators = sorted({denominator for _, denominator in self._metres})
        self._positions_per_beat = _STEPS_PER_WHOLE // denominators[0]
        config = miditok.TokenizerConfig(
            pitch_range=(0, 127),
            drums_pitch_range=(0, 127),
            beat_res=beat_resolutions(denominators),
            num_velocities=len(VELOCITIES),
            special_tokens=_SPECIAL,
            use_programs=True,
            use_tempos=True,
            num_tempos=len(TEMPOS_BPM),
            tempo_range=(float(TEMPOS_BPM[0]), float(TEMPOS_BPM[-1])),
            log_tempos=True,
            use_time_signatures=True,
            time_signature_range={
                beat: [n for n, denominator in self._metres if denominator == beat]
                for beat in denominators
            },
            delete_equal_successive_tempo_changes=True,
            **({"max_bar_embedding": max_bars} if kind == "octuple" else {}),
        )
        make = miditok.Octuple if kind == "octuple" else miditok.REMI
        self._tokenizer: Any = make(config)
        vocabularies = self._tokenizer.vocab if kind == "octuple" else [self._tokenizer.vocab]
        # Of each field: their id of each of ours, and ours of each of theirs.
        self._theirs = [
            np.array([number for name, number in vocabulary.items() if self._can_occur(name)])
            for vocabulary in vocabularies
        ]
        self._ours = [np.full(len(vocabulary), -1) for vocabulary in vocabularies]
        for ours, theirs in zip(self._ours, self._theirs, strict=True):
            ours[theirs] = np.arange(len(theirs))
        self._bar_token = (
            None if kind == "octuple" else int(self._ours[0][vocabularies[0]["Bar_None"]])
        )

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """(F,) ids of each field."""
        return tuple(map(len, self._theirs))

    @property
    def settings(self) -> dict[str, Any]:
        """What MidiTok was asked for, as JSON holds it."""
        config = self._tokenizer.config
        return {
            "tokenizer": type(self._tokenizer).__name__,
            "beat_res": {f"{a}-{b}": res for (a, b), res in config.beat_res.items()},
            "num_velocities": config.num_velocities,
            "num_tempos": config.num_tempos,
            "metres": [f"{n}/{d}" for n, d in self._metres],
            "vocabulary": list(self.vocab_sizes),
        }

    def encode(
        self, music: QuantisedPiece, *, starts: bool = True, ends: bool = True
    ) -> np.ndarray:
        """Tokens of some bars, (T, F) int64.

        Args:
            music: canonical; its metres among those of this encoding.
            starts: it starts its piece: BOS, else CONTINUE.
            ends: it ends its piece: EOS at the end.
        """
        score = to_score(to_piece(music))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", UserWarning
            )  # MidiTok warns where it leaves something out
            theirs = np.array(self._tokenizer.encode(score).ids).reshape(-1, len(self._ours))
        rows = [ours[column] for ours, column in zip(self._ours, theirs.T, strict=True)]
        ids = np.stack(rows, axis=1)
        assert (ids >= 0).all(), "music on our grid"
        first = np.full((1, ids.shape[1]), BOS if starts else CONTINUE)
        last = np.full((int(ends), ids.shape[1]), EOS)
        return np.concatenate([first, ids, last])

    def decode(self, ids: np.ndarray) -> QuantisedPiece | None:
        """Music of a sequence, on our grid; None where MidiTok or the grid does not take it.

        Args:
            ids: (T, F), from anywhere; special tokens are passed over.
        """
        ids = ids[(ids > CONTINUE).all(axis=1)]
        if not len(ids):
            return None
        theirs = [of_field[column] for of_field, column in zip(self._theirs, ids.T, strict=True)]
        sequence = np.stack(theirs, axis=1)
        try:
            score = self._tokenizer.decode(
                sequence.tolist() if self.kind == "octuple" else sequence[:, 0].tolist()
            )
            return quantise(read_midi(score.dumps_midi()))
        # What a model makes up need not be music, and MidiTok does not check.
        except (MidiError, ValueError, KeyError, IndexError, OverflowError):
            return None

    def bars_begun(self, ids: np.ndarray) -> int:
        """Bars that a sequence has entered."""
        if self._bar_token is not None:
            return int((ids[:, 0] == self._bar_token).sum())
        bars = ids[ids[:, _OCTUPLE_BAR] > CONTINUE, _OCTUPLE_BAR] - CONTINUE
        return int(bars.max(initial=0))

    @cached_property
    def _reachable_positions(self) -> set[int]:
        steps_of = {metre: metre_steps(*metre) for metre in self._metres}
        per_step = {
            metre: Fraction(self._positions_per_beat * metre[1], _STEPS_PER_WHOLE)
            for metre in self._metres
        }
        return {
            int(step * per_step[metre])
            for metre, steps in steps_of.items()
            for step in range(steps)
        }

    @cached_property
    def _reachable_beats(self) -> set[Fraction]:
        return {
            Fraction(steps * denominator, _STEPS_PER_WHOLE)
            for steps in DURATION_STEPS.tolist()
            for _, denominator in self._metres
        }

    def _can_occur(self, name: str) -> bool:
        kind, value = name.rsplit("_", 1)
        if kind == "Position":
            return int(value) in self._reachable_positions
        if kind == "Duration":
            beats, part, resolution = map(int, value.split("."))
            return beats + Fraction(part, resolution) in self._reachable_beats
        return True


# The field of Octuple that says in which bar a note starts.
_OCTUPLE_BAR = 2


def beat_resolutions(denominators: Iterable[int]) -> dict[tuple[int, int], int]:
    """Parts of a beat that every duration of our table falls on, by how many beats it lasts.

    A beat is the denominator's note, as MidiTok counts.

    Args:
        denominators: of the metres that occur.

    >>> beat_resolutions([4])
    {(0, 2): 24, (2, 4): 4, (4, 8): 2, (8, 32): 1}
    """
    denominators = sorted(denominators)
    finest = _STEPS_PER_WHOLE // denominators[0]
    longest = -(-int(DURATION_STEPS[-1]) * denominators[-1] // _STEPS_PER_WHOLE)
    needed = [1] * longest
    for denominator in denominators:
        for steps in DURATION_STEPS.tolist():
            beats = Fraction(steps * denominator, _STEPS_PER_WHOLE)
            # What is as long as the longest stands behind the last range.
            place = min(int(beats), longest - 1)
            needed[place] = lcm(needed[place], beats.denominator)
    needed[0] = finest  # the finest part is MidiTok's grid of onsets, too
    ranges: dict[tuple[int, int], int] = {}
    start = 0
    for beat in range(1, longest + 1):
        if beat == longest or needed[beat] != needed[start]:
            ranges[start, beat] = needed[start]
            start = beat
    return ranges
