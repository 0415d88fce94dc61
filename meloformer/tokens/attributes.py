"""The prefix: what a piece is said to be before its first bar; each statement may be absent.

Order: BOS or CONTINUE, then metre, tempo, key, length, density, instruments ascending.
"""

from dataclasses import dataclass

import numpy as np

from meloformer.midi.grid import NUM_INSTRUMENTS, STEPS_PER_QUARTER
from meloformer.midi.harmony import estimate_keys
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.vocabulary import (
    BOS,
    INDEX_OF,
    KIND_OF,
    Kind,
    density_bin,
    is_kind,
    length_bin,
    token_id,
)

# In the order of the prefix, and in that of the `keep` flags of `drop_attributes`.
ATTRIBUTE_KINDS = (
    Kind.METRE,
    Kind.TEMPO,
    Kind.KEY,
    Kind.LENGTH,
    Kind.DENSITY,
    Kind.INSTRUMENT,
)


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a prefix says; None or () where it says nothing.

    Args:
        metre: index into METRES, of the first bar.
        tempo: index into TEMPOS_BPM, of the first bar.
        key: 0..11 major by tonic, 12..23 minor by tonic.
        length: bin of the bars from here to the end of the piece.
        density: bin of the notes per quarter of the whole piece.
        instruments: those of the whole piece, ascending; 0 drums, 1 + program otherwise.
    """

    metre: int | None = None
    tempo: int | None = None
    key: int | None = None
    length: int | None = None
    density: int | None = None
    instruments: tuple[int, ...] = ()


def attributes_of(quantised: QuantisedPiece) -> Attributes:
    """Everything that can be said of a piece with at least one note."""
    return joined_attributes(JoinedPieces.of(quantised))[0]


def joined_attributes(joined: JoinedPieces) -> list[Attributes]:
    """`attributes_of` each of several pieces."""
    music = joined.music
    num_quarters = (joined.end_steps - joined.start_steps) / STEPS_PER_QUARTER
    sounding = np.bincount(
        joined.piece_of_note * NUM_INSTRUMENTS + music.instrument,
        minlength=len(joined) * NUM_INSTRUMENTS,
    ).reshape(-1, NUM_INSTRUMENTS)
    first_bar = joined.first_bar[:-1]
    return [
        Attributes(
            metre=metre,
            tempo=tempo,
            key=key,
            length=length,
            density=density_bin(density),
            instruments=tuple(np.flatnonzero(notes).tolist()),
        )
        for metre, tempo, key, length, density, notes in zip(
            music.bar_metre[first_bar].tolist(),
            music.bar_tempo[first_bar].tolist(),
            estimate_keys(joined),
            np.asarray(length_bin(joined.num_bars)).tolist(),
            (joined.num_notes / num_quarters).tolist(),
            sounding,
            strict=True,
        )
    ]


def write_prefix(attributes: Attributes, start: int = BOS) -> np.ndarray:
    """Prefix tokens, the start token (BOS or CONTINUE) included.

    Returns:
        (T,) uint16 ids.

    >>> from meloformer.tokens.vocabulary import token_name
    >>> [token_name(i) for i in write_prefix(Attributes(key=9, instruments=(0, 1)))]
    ['BOS', 'KEY:A major', '#D', '#P0']
    """
    single = (
        (Kind.METRE, attributes.metre),
        (Kind.TEMPO, attributes.tempo),
        (Kind.KEY, attributes.key),
        (Kind.LENGTH, attributes.length),
        (Kind.DENSITY, attributes.density),
    )
    ids = [start]
    ids += [token_id(kind, index) for kind, index in single if index is not None]
    ids += [token_id(Kind.INSTRUMENT, index) for index in sorted(set(attributes.instruments))]
    return np.array(ids, dtype=np.uint16)


def read_prefix(ids: np.ndarray) -> Attributes:
    """What the prefix of a checked sequence says; the inverse of `write_prefix`."""
    prefix = ids[: prefix_length(ids)]
    kind, index = KIND_OF[prefix], INDEX_OF[prefix]
    said = {int(k): int(i) for k, i in zip(kind, index, strict=True)}
    return Attributes(
        metre=said.get(Kind.METRE),
        tempo=said.get(Kind.TEMPO),
        key=said.get(Kind.KEY),
        length=said.get(Kind.LENGTH),
        density=said.get(Kind.DENSITY),
        instruments=tuple(index[is_kind(kind, Kind.INSTRUMENT)].tolist()),
    )


def prefix_length(ids: np.ndarray) -> int:
    """Number of tokens before the first bar token; all of them where there is no bar."""
    # The longest prefix says everything once and, of a filled window, names instruments before
    # (tokens/filling.py), so the search never reads a whole piece.
    longest = 2 + len(ATTRIBUTE_KINDS) + 2 * NUM_INSTRUMENTS
    is_bar = is_kind(KIND_OF.take(ids[:longest]), Kind.BAR)
    return int(is_bar.argmax()) if is_bar.any() else len(ids)


def drop_attributes(ids: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Leave out the attributes of a prefix that are not kept; the bars stay.

    Args:
        ids: (T,) a piece or a window.
        keep: (6,) bool in the order of ATTRIBUTE_KINDS.
    """
    length = prefix_length(ids)
    kept_kind = np.ones(len(Kind), dtype=bool)
    kept_kind[list(ATTRIBUTE_KINDS)] = keep
    prefix = ids[:length]
    return np.concatenate([prefix[kept_kind[KIND_OF[prefix]]], ids[length:]])
