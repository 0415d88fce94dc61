"""What a user may ask for: a prefix that the model reads, wishes that the grammar keeps."""

from dataclasses import dataclass

import numpy as np

from meloformer.errors import GenerationError
from meloformer.midi import grid
from meloformer.tokens.vocabulary import (
    BOS,
    NUM_KEYS,
    Kind,
    density_bin,
    instrument_name,
    key_name,
    length_bin,
    token_id,
)


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Wishes for a new piece; what is not said is left to the model.

    Args:
        bars: number of bars, exactly.
        tempo: beats (quarters) per minute; the nearest value of the grid holds throughout.
        time_signature: such as 3/4; holds throughout.
        key: such as "C major" or "F# minor"; the model is told, nothing is enforced.
        instruments: the only ones that play: programs 0..127 or `drums`.
        density: notes per quarter; the model is told, nothing is enforced.
    """

    bars: int = 16
    tempo: float | None = None
    time_signature: str | None = None
    key: str | None = None
    instruments: tuple[str, ...] = ()
    density: float | None = None

    def __post_init__(self) -> None:
        if self.bars < 1:
            raise GenerationError(f"--bars {self.bars}: allowed are 1 and above")
        self.prefix()

    @property
    def metre_index(self) -> int | None:
        """Index into METRES.

        Raises:
            GenerationError: not a time signature of the grid.
        """
        if self.time_signature is None:
            return None
        numerator, _, denominator = self.time_signature.partition("/")
        if numerator.isdigit() and denominator.isdigit():
            index = grid.METRE_INDEX.get((int(numerator), int(denominator)))
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
    def key_index(self) -> int | None:
        """Index of the key, 0..11 major, 12..23 minor."""
        if self.key is None:
            return None
        names = {key_name(index).lower(): index for index in range(NUM_KEYS)}
        index = names.get(" ".join(self.key.lower().split()))
        if index is None:
            raise GenerationError(f"--key {self.key!r}: allowed are {', '.join(names)}")
        return index

    @property
    def instrument_indices(self) -> tuple[int, ...]:
        """Instruments of the grid, ascending: 0 drums, 1 + program."""
        indices = set()
        for name in self.instruments:
            if name.lower() in ("drums", "#d"):
                indices.add(grid.DRUMS)
            elif name.isdigit() and int(name) < grid.NUM_INSTRUMENTS - 1:
                indices.add(1 + int(name))
            else:
                raise GenerationError(
                    f"--instruments {name}: allowed are drums and the programs 0 to "
                    f"{grid.NUM_INSTRUMENTS - 2}"
                )
        return tuple(sorted(indices))

    def prefix(self) -> list[int]:
        """BOS and the wishes, in the order of the grammar."""
        if self.density is not None and self.density < 0:
            raise GenerationError(f"--density {self.density:g}: allowed are 0 and above")
        wishes = [
            (Kind.METRE, self.metre_index),
            (Kind.TEMPO, self.tempo_index),
            (Kind.KEY, self.key_index),
            (Kind.LENGTH, int(length_bin(self.bars))),
            (Kind.DENSITY, None if self.density is None else density_bin(self.density)),
            *((Kind.INSTRUMENT, index) for index in self.instrument_indices),
        ]
        return [BOS] + [token_id(kind, index) for kind, index in wishes if index is not None]

    def describe(self) -> str:
        """The wishes in words, for logs and titles."""
        words = [f"{self.bars} bars"]
        if self.tempo is not None:
            words.append(f"{self.tempo:g} bpm")
        words += [word for word in (self.time_signature, self.key) if word]
        words += [instrument_name(index) for index in self.instrument_indices]
        return ", ".join(words)
