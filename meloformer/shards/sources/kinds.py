"""What a file is by its name: MIDI, an archive, a table, a licence or none of them."""

import re
from enum import Enum


class Kind(Enum):
    """What a source does with a file."""

    MIDI = "midi"
    ZIP = "zip"
    TAR = "tar"
    TABLE = "table"
    LICENCE = "licence"
    CLOSED = "closed"
    """An archive that is not opened: a kind that is not read."""
    OTHER = "other"


_PLAIN_MIDI = (".mid", ".midi", ".kar", ".rmi", ".rmid", ".smf")
MIDI_SUFFIXES = (*_PLAIN_MIDI, *(f"{suffix}.gz" for suffix in _PLAIN_MIDI))
ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TABLE_SUFFIXES = (".parquet", ".arrow")
_CLOSED_SUFFIXES = (".7z", ".rar", ".tar.zst", ".tzst", ".tar.lz", ".tar.z", ".lzh", ".lha")

ALLOWED = (
    f"{', '.join(_PLAIN_MIDI)} (also .gz of one), archives ({', '.join(ZIP_SUFFIXES)}, "
    f"{', '.join(TAR_SUFFIXES)}) and datasets ({', '.join(TABLE_SUFFIXES)}) of them"
)

_OF_SUFFIX = {
    suffix: kind
    for kind, suffixes in (
        (Kind.MIDI, MIDI_SUFFIXES),
        (Kind.ZIP, ZIP_SUFFIXES),
        (Kind.TAR, TAR_SUFFIXES),
        (Kind.TABLE, TABLE_SUFFIXES),
        (Kind.CLOSED, _CLOSED_SUFFIXES),
    )
    for suffix in suffixes
}
_LICENCE_NAME = re.compile(r"(un)?licen[sc]e|copying|copyright|notice", re.IGNORECASE)
_TEXT_SUFFIXES = ("", ".txt", ".md", ".rst", ".html")
# Not licences, but written so that a line in them names one: Hugging Face's cards.
_CARD_NAMES = ("readme.md", "dataset_info.json")

ARCHIVES = frozenset({Kind.ZIP, Kind.TAR, Kind.TABLE, Kind.CLOSED})


def suffix_of(name: str) -> str:
    """The end of a name that tells its kind, lowered.

    >>> suffix_of("Lakh.TAR.GZ"), suffix_of("a.b/c"), suffix_of("v1.2.mid")
    ('.tar.gz', '', '.mid')
    """
    stem, dot, last = name.rpartition("/")[2].lower().rpartition(".")
    _, stem_dot, before = stem.rpartition(".")
    double = f"{stem_dot}{before}{dot}{last}"
    return double if double in _OF_SUFFIX else f"{dot}{last}" if dot else ""


def kind_of(name: str) -> Kind:
    """What a file of this name is.

    >>> kind_of("song.mid.gz").value, kind_of("b.tgz").value, kind_of("c.rar").value
    ('midi', 'tar', 'closed')
    """
    kind = _OF_SUFFIX.get(suffix_of(name))
    if kind is not None:
        return kind
    last = name.rpartition("/")[2]
    is_licence = last.lower() in _CARD_NAMES or (
        _LICENCE_NAME.match(last) and suffix_of(last) in _TEXT_SUFFIXES
    )
    return Kind.LICENCE if is_licence else Kind.OTHER


def is_table(name: str) -> bool:
    """Tell a table by its name; cheaper than kind_of."""
    return name.lower().endswith(TABLE_SUFFIXES)
