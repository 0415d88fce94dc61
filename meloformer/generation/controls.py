"""What a user may ask for: a prefix that the model reads, wishes that the grammar keeps."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from meloformer.errors import GenerationError
from meloformer.generation.spelling import (
    chords_of,
    entries_of,
    instrument_index,
    key_index,
    notes_per_bar_of,
    ranges_of,
)
from meloformer.midi import grid
from meloformer.midi.general_midi import instrument_in_words
from meloformer.midi.limits import MAX_BARS
from meloformer.plurals import counted
from meloformer.tokens.attributes import Attributes, write_prefix
from meloformer.tokens.vocabulary import (
    DENSITY_BIN_NOTES_PER_QUARTER,
    density_bin,
    key_name,
    length_bin,
)
from meloformer.tokens.wishes import Wishes

DEFAULT_BARS = 16
NOTHING = Attributes()
# Steps of the scales above the tonic; the minor one is the natural one.
_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Wishes for a new piece; what is not said is left to the model.

    All but key and density are kept exactly; docs/controls.md says what is kept and what is told.

    Args:
        bars: number of bars, exactly; if not given, what a text says of its length, the bars of its
            sections, as many as there are summaries to write from, or 16.
        tempo: beats (quarters) per minute; the nearest value of the grid holds throughout.
        time_signature: such as 3/4; holds throughout.
        key: such as "C major" or "F# minor"; the model is told, nothing is enforced.
        scale_only: of all instruments but drums, only pitches of the key's scale (of a minor key,
            the natural one).
        chords: of the bars, such as "C Am F G7", one a bar and then from the front again; roots
            with nothing, m, dim, aug, maj7, m7 or 7, N for none, C*4 for four bars. Each bar says
            its chord to the model; whether the notes follow is up to the model.
        instruments: those that play, each from early on, and no others: programs
            0..127, `drums`, or names such as violin; with --num_instruments, those that it may
            choose from.
        num_instruments: so many different ones play over the piece, drums being one.
        enter: where instruments come in, such as drums:4 33:0; silent before that bar, counted from
            0, and playing in it.
        drums: may play where no instruments are listed; without, the grammar keeps them out. The
            model is not told: a prefix says what plays, not what does not.
        pitch_range: lowest and highest pitch of instruments, such as 33:28-52.
        notes_per_bar: at least and at most so many in every bar, all instruments together, such as
            2-12, 4- or 8.
        density: notes per quarter; the model is told, nothing is enforced.
    """

    bars: int | None = None
    tempo: float | None = None
    time_signature: str | None = None
    key: str | None = None
    scale_only: bool = False
    chords: tuple[str, ...] = ()
    instruments: tuple[str, ...] = ()
    num_instruments: int | None = None
    enter: tuple[str, ...] = ()
    drums: bool = True
    pitch_range: tuple[str, ...] = ()
    notes_per_bar: str | None = None
    density: float | None = None

    def __post_init__(self) -> None:
        if self.bars is not None and not 1 <= self.bars <= MAX_BARS:
            raise GenerationError(
                f"--bars {self.bars}: allowed are 1 to {MAX_BARS}, of the longest piece"
            )
        self.prefix()
        if not self.drums and grid.DRUMS in self.listed_instruments:
            raise GenerationError("--instruments drums with --no_drums: allowed: one of them")
        if self.scale_only and self.key is None:
            raise GenerationError("--scale_only without --key: allowed: a key beside it")
        # Without a number a text may yet say one.
        self._wishes(self.bars or MAX_BARS)

    @property
    def num_bars(self) -> int:
        """Bars of the piece."""
        return DEFAULT_BARS if self.bars is None else self.bars

    @property
    def metre_index(self) -> int | None:
        """Index into METRES.

        Raises:
            GenerationError: not a time signature of the grid.
        """
        if self.time_signature is None:
            return None
        # Not `isdigit`, which takes ² for a digit; nor so many that `int` refuses them.
        if match := re.fullmatch(r"(\d{1,4})/(\d{1,4})", self.time_signature):
            index = grid.METRE_INDEX.get((int(match[1]), int(match[2])))
            if index is not None:
                return index
        raise GenerationError(
            f"--time_signature {self.time_signature}: allowed are N/D with D one of "
            f"{', '.join(map(str, grid.DENOMINATORS))} and bars of at most "
            f"{grid.MAX_BAR_STEPS // grid.STEPS_PER_QUARTER} quarters, such as 4/4 or 6/8"
        )

    @property
    def tempo_index(self) -> int | None:
        """Index into TEMPOS_BPM of the nearest tempo."""
        if self.tempo is None:
            return None
        low, high = grid.TEMPOS_BPM[0], grid.TEMPOS_BPM[-1]
        if not low <= self.tempo <= high:
            raise GenerationError(f"--tempo {self.tempo:g}: allowed are {low:g} to {high:g}")
        return int(grid.nearest_index(np.array([self.tempo]), grid.TEMPOS_BPM)[0])

    @property
    def another_tempo(self) -> str | None:
        """A line to print where the tempo that is taken is not the one that was asked for.

        >>> ControlConfig(tempo=97).another_tempo
        '--tempo 97: the nearest tempo of the grid is taken, 96.63'
        >>> ControlConfig(tempo=120).another_tempo
        """
        if self.tempo is None or self.tempo_index is None:
            return None
        taken = grid.TEMPOS_BPM[self.tempo_index]
        if taken == self.tempo:
            return None
        return f"--tempo {self.tempo:g}: the nearest tempo of the grid is taken, {taken:g}"

    @property
    def key_index(self) -> int | None:
        """Index of the key, 0..11 major, 12..23 minor."""
        if self.key is None:
            return None
        return key_index(self.key)

    @property
    def listed_instruments(self) -> tuple[int, ...]:
        """Instruments of the grid that are named, ascending: 0 drums, 1 + program."""
        return tuple(sorted({instrument_index("--instruments", name) for name in self.instruments}))

    @property
    def instrument_indices(self) -> tuple[int, ...]:
        """The only ones that may play, as in `listed_instruments`; () where all may."""
        if self.drums or self.listed_instruments:
            return self.listed_instruments
        return tuple(index for index in range(grid.NUM_INSTRUMENTS) if index != grid.DRUMS)

    @property
    def playing(self) -> tuple[int, ...]:
        """All that play, ascending, where that is known before; () where it is not."""
        listed = self.listed_instruments
        if listed and self.num_instruments in (None, len(listed)):
            return listed
        entering = sorted(instrument for instrument, _ in entries_of(self.enter))
        return tuple(entering) if self.num_instruments == len(entering) else ()

    @property
    def wishes(self) -> Wishes:
        """What the grammar keeps.

        Raises:
            ConfigError: no piece of so many bars can be like that.
        """
        return self._wishes(self.num_bars)

    def _wishes(self, num_bars: int) -> Wishes:
        entries = entries_of(self.enter)
        entering = {instrument for instrument, _ in entries}
        least, most = (
            (0, None) if self.notes_per_bar is None else notes_per_bar_of(self.notes_per_bar)
        )
        return Wishes(
            num_bars=num_bars,
            instruments=self.instrument_indices or None,
            metre=self.metre_index,
            tempo=self.tempo_index,
            chords=chords_of(self.chords),
            playing=tuple(index for index in self.playing if index not in entering),
            num_instruments=self.num_instruments,
            entries=entries,
            least_notes=least,
            most_notes=most,
            scale=self._scale,
            ranges=ranges_of(self.pitch_range),
        )

    @property
    def _scale(self) -> tuple[int, ...] | None:
        """Pitch classes that may sound; None for all."""
        if not self.scale_only or self.key_index is None:
            return None
        is_minor, tonic = divmod(self.key_index, 12)
        return tuple((tonic + step) % 12 for step in (_MINOR if is_minor else _MAJOR))

    def prefix(self, told: Attributes = NOTHING) -> np.ndarray:
        """BOS and the wishes, in the order of the grammar.

        Args:
            told: what the model is told where nothing is wished for; the grammar keeps none of it.

        Returns:
            (T,) uint16.
        """
        if self.density is not None and not 0 <= self.density < math.inf:
            raise GenerationError(f"--density {self.density:g}: allowed are 0 and above")
        wished = Attributes(
            metre=self.metre_index,
            tempo=self.tempo_index,
            key=self.key_index,
            length=int(length_bin(self.num_bars)),
            density=None if self.density is None else density_bin(self.density),
            instruments=self.playing,
        )
        told = replace(told, instruments=self._playing(told.instruments))
        said = {name: value for name, value in vars(wished).items() if value not in (None, ())}
        return write_prefix(replace(told, **said))

    def _playing(self, instruments: tuple[int, ...]) -> tuple[int, ...]:
        """Those of a text that nobody has forbidden; none where the flags say that others play."""
        left = tuple(index for index in instruments if self.drums or index != grid.DRUMS)
        agrees = (
            self.num_instruments in (None, len(left))
            and {instrument for instrument, _ in entries_of(self.enter)} <= set(left)
            and set(left) <= set(self.listed_instruments or left)
        )
        return left if agrees else ()

    def keeping(self, told: Attributes, *, drums: bool = True) -> "ControlConfig":
        """The same wishes, and those of a text where nothing is wished for yet; length apart.

        Args:
            told: what the text says.
            drums: False where it denies them; a list of instruments says that itself.
        """
        wishes: dict[str, Any] = {
            "tempo": None if told.tempo is None else float(grid.TEMPOS_BPM[told.tempo]),
            "time_signature": None
            if told.metre is None
            else "{}/{}".format(*grid.METRES[told.metre]),
            "key": None if told.key is None else key_name(told.key),
            "instruments": tuple(
                "drums" if index == grid.DRUMS else str(index - 1)
                for index in self._playing(told.instruments)
            ),
            "density": None if told.density is None else density_of_bin(told.density),
        }
        free = {name: v for name, v in wishes.items() if getattr(self, name) in (None, ())}
        kept = replace(self, **free)
        entering = {instrument for instrument, _ in entries_of(self.enter)}
        if drums or kept.instruments or grid.DRUMS in entering:
            return kept
        return replace(kept, drums=False)

    def describe(self) -> str:
        """The wishes in words, for logs and titles."""
        words = [counted(self.num_bars, "bar")]
        if self.tempo is not None:
            words.append(f"{self.tempo:g} bpm")
        words += [word for word in (self.time_signature, self.key) if word]
        if self.scale_only:
            words.append("its scale only")
        if self.chords:
            words.append(f"chords {' '.join(self.chords)}")
        words += [instrument_in_words(index) for index in self.listed_instruments]
        if not (self.drums or self.instruments):
            words.append("no drums")
        if self.num_instruments is not None:
            words.append(counted(self.num_instruments, "instrument"))
        words += [
            f"{instrument_in_words(one)} from bar {bar}" for one, bar in entries_of(self.enter)
        ]
        words += [f"pitches {text}" for text in self.pitch_range]
        if self.notes_per_bar is not None:
            words.append(f"{self.notes_per_bar} notes a bar")
        if self.density is not None:
            words.append(f"{self.density:g} notes per quarter")
        return ", ".join(words)


def density_of_bin(index: int) -> float:
    """Notes per quarter that fall into a bin.

    >>> [density_bin(density_of_bin(index)) for index in (0, 7, 15)]
    [0, 7, 15]
    """
    edges = DENSITY_BIN_NOTES_PER_QUARTER
    return edges[index] if index < len(edges) else 2 * edges[-1]
