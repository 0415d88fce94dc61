"""What a sequence shall be besides grammatical: wishes that the mask of the grammar keeps."""

from collections.abc import Collection
from dataclasses import dataclass

from meloformer.errors import ConfigError
from meloformer.tokens.vocabulary import BLOCK_SIZES, Kind


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is wished for; None leaves the choice to whoever samples.

    Args:
        num_bars: EOS stands after exactly so many bars, the last of which gets a note; None
            allows EOS after any bar with a note.
        instruments: the only ones that may play; 0 drums, 1 + program otherwise.
        metre: index into METRES, from the next bar on.
        tempo: index into TEMPOS_BPM, from the next bar on.

    Raises:
        ConfigError: a wish that no sequence can fulfil.
    """

    num_bars: int | None = None
    instruments: Collection[int] | None = None
    metre: int | None = None
    tempo: int | None = None

    def __post_init__(self) -> None:
        if self.num_bars is not None and self.num_bars < 1:
            raise ConfigError(f"{self.num_bars} bars wished; allowed: at least 1 bar")
        for kind, index in ((Kind.METRE, self.metre), (Kind.TEMPO, self.tempo)):
            if index is not None:
                _check_index(kind, index)
        if self.instruments is not None:
            if not self.instruments:
                raise ConfigError(
                    "no instrument may play: a piece needs a note; allowed: at least one "
                    "instrument, or None for all"
                )
            for index in self.instruments:
                _check_index(Kind.INSTRUMENT, index)


NO_WISHES = Wishes()


def _check_index(kind: Kind, index: int) -> None:
    if not 0 <= index < BLOCK_SIZES[kind]:
        raise ConfigError(
            f"{kind.name.lower()} index {index} wished; allowed: 0..{BLOCK_SIZES[kind] - 1}"
        )
