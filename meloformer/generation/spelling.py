"""How the flags spell wishes: instruments, entries, pitch ranges, notes a bar, keys, chords."""

import re
from collections.abc import Iterable
from functools import cache

from meloformer.errors import GenerationError
from meloformer.midi import grid
from meloformer.midi.general_midi import instrument_name
from meloformer.midi.instrument_names import instrument
from meloformer.tokens.vocabulary import CHORD_QUALITIES, NO_CHORD

_ROOT = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTAL = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}
_QUALITY = {
    "maj": ("", "maj", "M", "major"),
    "min": ("m", "min", "-", "minor"),
    "dim": ("dim", "o", "°"),
    "aug": ("aug", "+"),
    "maj7": ("maj7", "M7", "Δ", "Δ7"),
    "min7": ("m7", "min7", "-7"),
    "dom7": ("7", "dom7"),
}
_QUALITY_INDEX = {
    spelt: CHORD_QUALITIES.index(quality)
    for quality, spellings in _QUALITY.items()
    for spelt in spellings
}
_KEY = re.compile(r"([A-Ga-g])([#♯b♭]?) ?(.*)")
_MODE = {"major": 0, "maj": 0, "M": 0, "": 0, "minor": 1, "min": 1, "m": 1, "大调": 0, "小调": 1}
_NO_CHORD = ("N", "NC", "N.C.")
_CHORD = re.compile(r"([A-G])([#♯b♭]?)(.*)")
# Richer chords have no token; none is taken for a poorer one that was not asked for.
_ALLOWED_CHORDS = (
    "allowed: a root such as C, F# or Bb with nothing, m, dim, aug, maj7, m7 or 7 behind it, or N "
    "for no chord; C*4 for four bars of it"
)


def instrument_index(flag: str, name: str) -> int:
    """Instrument of the grid, 0 drums, 1 + program otherwise.

    Raises:
        GenerationError: neither drums nor a program, nor the name of just one.

    >>> [instrument_index("--instruments", name) for name in ("drums", "0", "violin", "小提琴")]
    [0, 1, 41, 41]
    """
    spelt = _plain(name)
    if spelt.isascii() and spelt.isdigit() and int(spelt) < grid.NUM_INSTRUMENTS - 1:
        return 1 + int(spelt)
    names = _instruments_by_name()
    if (index := names.get(spelt)) is not None:
        return index
    alike = sorted({index for one, index in names.items() if _is_part(spelt, one)})
    if alike:
        raise GenerationError(
            f"{flag} {name}: found {len(alike)} that are called so; allowed: the number of one, "
            + ", ".join(f"{index - 1} {instrument(index).en}" for index in alike)
        )
    raise GenerationError(
        f"{flag} {name}: allowed are drums, the programs 0 to {grid.NUM_INSTRUMENTS - 2} and "
        "their names, such as violin or 小提琴"
    )


@cache
def _instruments_by_name() -> dict[str, int]:
    """As General MIDI, a sentence in English or Chinese, and the tokens call them."""
    names = {"#d": grid.DRUMS, "鼓": grid.DRUMS}
    for index in range(grid.NUM_INSTRUMENTS):
        said = instrument(index)
        for name in (instrument_name(index), said.en, said.zh):
            names.setdefault(_plain(name), index)
        if index != grid.DRUMS:
            names[f"#p{index - 1}"] = index
    return names


def _is_part(spelt: str, name: str) -> bool:
    """Whether words are some of a name's; Chinese has no spaces between them.

    >>> _is_part("bass", "slap bass"), _is_part("bass", "bassoon"), _is_part("贝斯", "原声贝斯")
    (True, False, True)
    """
    if not spelt.isascii():
        return spelt in name
    return bool(spelt) and set(spelt.split()) <= set(name.split())


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[-_]", " ", name.lower()).split())


def entries_of(pairs: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """(instrument, bar) of each entry.

    Raises:
        GenerationError: no such pair, or an instrument that enters twice.

    >>> entries_of(["drums:4", "33:0"])
    ((0, 4), (34, 0))
    """
    found: dict[int, int] = {}
    for pair in pairs:
        name, _, bar = pair.rpartition(":")
        if not (name and bar.isascii() and bar.isdigit()):
            raise GenerationError(
                f"--enter {pair}: allowed are an instrument and the bar that it enters at, counted "
                "from 0, such as drums:4"
            )
        instrument = instrument_index("--enter", name)
        if instrument in found:
            raise GenerationError(f"--enter {pair}: {name} enters twice; allowed: once each")
        found[instrument] = int(bar)
    return tuple(found.items())


def ranges_of(texts: Iterable[str]) -> tuple[tuple[int, int, int], ...]:
    """(instrument, lowest pitch, highest pitch) of each range.

    Raises:
        GenerationError: no such range, or two of one instrument.

    >>> ranges_of(["33:28-52"])
    ((34, 28, 52),)
    """
    found: dict[int, tuple[int, int]] = {}
    for text in texts:
        name, _, pitches = text.rpartition(":")
        if not name or not (match := re.fullmatch(r"([0-9]{1,3})-([0-9]{1,3})", pitches)):
            raise GenerationError(
                f"--pitch_range {text}: allowed are an instrument and its lowest and highest "
                "pitch, 60 the middle C, such as 33:28-52"
            )
        instrument = instrument_index("--pitch_range", name)
        if instrument in found:
            raise GenerationError(f"--pitch_range {text}: {name} has two; allowed: one each")
        found[instrument] = (int(match[1]), int(match[2]))
    return tuple((instrument, low, high) for instrument, (low, high) in found.items())


def notes_per_bar_of(text: str) -> tuple[int, int | None]:
    """The least and the most notes of a bar; None for any number.

    Raises:
        GenerationError: no such numbers.

    >>> notes_per_bar_of("2-12"), notes_per_bar_of("4-"), notes_per_bar_of("8")
    ((2, 12), (4, None), (8, 8))
    """
    if not (match := re.fullmatch(r"([0-9]{1,5})(-?)([0-9]{0,5})", text)) or (
        match[3] and not match[2]
    ):
        raise GenerationError(
            f"--notes_per_bar {text}: allowed are the least and the most notes of a bar, such as "
            "2-12, 0-12 or 4- (no upper bound), or one number for both"
        )
    if match[2]:
        return int(match[1]), int(match[3]) if match[3] else None
    return int(match[1]), int(match[1])


def key_index(text: str) -> int:
    """Key of the prefix, 0..11 major, 12..23 minor.

    Raises:
        GenerationError: none.

    >>> key_index("C major"), key_index("Am"), key_index("Db minor") == key_index("C# minor")
    (0, 21, True)
    """
    match = _KEY.fullmatch(" ".join(text.split()))
    # One letter tells M from m; words may be written in any case.
    said = (match[3] if len(match[3]) == 1 else match[3].lower()) if match else None
    if match is None or said not in _MODE:
        raise GenerationError(
            f"--key {text!r}: allowed are a root, such as C, F# or Bb, and major or minor behind it"
        )
    return 12 * _MODE[said] + (_ROOT[match[1].upper()] + _ACCIDENTAL[match[2]]) % 12


def chord_index(name: str) -> int:
    """Chord of the bar tokens.

    Raises:
        GenerationError: none of theirs.

    >>> from meloformer.tokens.vocabulary import chord_name
    >>> [chord_name(chord_index(name)) for name in ("C", "Am", "F#m7", "Bb", "G7", "N")]
    ['Cmaj', 'Amin', 'F#min7', 'Bbmaj', 'Gdom7', 'N']
    """
    if name in _NO_CHORD:
        return NO_CHORD
    match = _CHORD.fullmatch(name)
    quality = _QUALITY_INDEX.get(match[3]) if match else None
    if match is None or quality is None:
        raise GenerationError(f"--chords {name}: no chord of the bar tokens; {_ALLOWED_CHORDS}")
    root = (_ROOT[match[1]] + _ACCIDENTAL[match[2]]) % 12
    return root * len(CHORD_QUALITIES) + quality


def chords_of(texts: Iterable[str]) -> tuple[int, ...]:
    """One chord a bar; bar lines may stand between them.

    Raises:
        GenerationError: a chord that the bar tokens do not know, two in a bar, or none at all.

    >>> chords_of(["C*2 | N |"]) == chords_of(["C", "C N"])
    True
    """
    spelt_bars = list(texts)
    text = " ".join(spelt_bars)
    chords: list[int] = []
    for bar in text.split("|"):
        spelt = bar.split()
        if len(spelt) > 1 and "|" in text:
            raise GenerationError(
                f"--chords: found {' '.join(spelt)} between two bar lines; allowed: one chord a bar"
            )
        for one in spelt:
            name, star, times = one.partition("*")
            if star and not re.fullmatch(r"[1-9][0-9]{0,4}", times):
                raise GenerationError(f"--chords {one}: no number of bars; {_ALLOWED_CHORDS}")
            chords += [chord_index(name)] * (int(times) if star else 1)
    if spelt_bars and not chords:
        raise GenerationError(f"--chords {text!r}: found no chord; {_ALLOWED_CHORDS}")
    return tuple(chords)
