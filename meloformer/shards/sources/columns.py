"""Which columns of a table hold MIDI, name files, or say something of the music."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meloformer.shards.sources.kinds import Kind, kind_of

if TYPE_CHECKING:
    import pyarrow

_BYTES_NAMES = (
    "midi",
    "midi_bytes",
    "midi_data",
    "midi_file",
    "mid",
    "file",
    "content",
    "bytes",
    "data",
    "music",
)
_LOCATION_NAMES = ("location", "midi_path", "midi_file", "midi", "file_name", "filename", "path")
_CAPTION_NAMES = ("caption", "captions", "text", "description", "prompt")
# Source: the columns of MidiCaps (arXiv 2406.02255), its captions named above.
_MIDICAPS_NAMES = (
    "location",
    "genre",
    "genre_prob",
    "mood",
    "mood_prob",
    "key",
    "time_signature",
    "tempo",
    "tempo_word",
    "duration",
    "duration_word",
    "chord_summary",
    "chord_summary_occurence",
    "instrument_summary",
    "instrument_numbers_sorted",
    "all_chords",
    "all_chords_timestamps",
    "test_set",
)
# MIDI, a RIFF around it, gzip around it.
_MAGICS = (b"MThd", b"RIFF", b"\x1f\x8b")


@dataclass(frozen=True)
class Columns:
    """Columns of a table that are read.

    Args:
        midi: holds bytes, plain or as the struct {bytes, path} of Hugging Face; None where rows
            only name files.
        location: names the file of each row; None where all hold bytes.
        facts: say something of the music.
        left_out: not read, since nothing says what they mean.
    """

    midi: str | None
    location: str | None
    facts: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """Every column that is read, each once."""
        named = (self.midi, self.location, *self.facts)
        return list(dict.fromkeys(name for name in named if name is not None))

    def __str__(self) -> str:
        captions = [name for name in self.facts if name.lower() in _CAPTION_NAMES]
        captions.sort(key=lambda name: _rank(name, _CAPTION_NAMES))
        others = [name for name in self.facts if name not in captions]
        said = [
            f"music from {self.midi}"
            if self.midi
            else f"music from the files that {self.location} names",
            f"fact caption from {' or else '.join(captions)}" if captions else "",
            f"fact dataset from {', '.join(others)}" if others else "",
            f"left out {', '.join(self.left_out)}" if self.left_out else "nothing left out",
        ]
        return "; ".join(filter(None, said))


@dataclass
class ColumnsMet:
    """The columns of all tables that a walk has met; tables of one layout count as one."""

    _names: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, table: str, columns: Columns) -> None:
        """Count a table."""
        first, count = self._names.get(str(columns), (table, 0))
        self._names[str(columns)] = (first, count + 1)

    def clear(self) -> None:
        """Begin another walk."""
        self._names.clear()

    def lines(self) -> tuple[str, ...]:
        """`table: what was taken as what, and what was left out`, one for each layout."""
        return tuple(
            f"{table}{f' and {count - 1} more' if count > 1 else ''}: {said}"
            for said, (table, count) in self._names.items()
        )


def bytes_columns(schema: "pyarrow.Schema") -> list[str]:
    """Columns that could hold MIDI by their type, likely names first."""
    names = [field.name for field in schema if _holds_bytes(field.type)]
    return sorted(names, key=lambda name: _rank(name, _BYTES_NAMES))


def location_columns(schema: "pyarrow.Schema") -> list[str]:
    """Columns that could name files, likely names first."""
    import pyarrow.types as types

    names = [
        field.name
        for field in schema
        if field.name.lower() in _LOCATION_NAMES
        and (types.is_string(field.type) or types.is_large_string(field.type))
    ]
    return sorted(names, key=lambda name: _rank(name, _LOCATION_NAMES))


def choose_columns(
    schema: "pyarrow.Schema", first_rows: Sequence[Mapping[str, Any]]
) -> Columns | None:
    """Find the music in a table.

    Args:
        schema: of the table.
        first_rows: values of bytes_columns and location_columns in a few rows.

    Returns:
        None where there is neither MIDI nor a name of a file of it.
    """
    candidates = bytes_columns(schema)
    with_magic = [name for name in candidates if _any_magic(name, first_rows)]
    by_name = [name for name in candidates if name.lower() in _BYTES_NAMES]
    locations = [name for name in location_columns(schema) if _any_midi_name(name, first_rows)]
    midi = next(iter([*with_magic, *([] if locations else by_name)]), None)
    location = None if midi or not locations else locations[0]
    if midi is None and location is None:
        return None
    known = (*_CAPTION_NAMES, *_MIDICAPS_NAMES)
    others = [name for name in schema.names if name not in (midi, location)]
    return Columns(
        midi,
        location,  # and no fact: it is the name of the file
        tuple(name for name in others if name.lower() in known),
        tuple(name for name in others if name.lower() not in known),
    )


def facts_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its music, as JSON takes it; columns without a value are left out.

    The first caption stands alone; more of them stay with the other columns.

    >>> facts_of({"caption": "A waltz.", "tempo": 90, "key": None})
    {'caption': 'A waltz.', 'dataset': {'tempo': 90}}
    >>> facts_of({"captions": ["A waltz.", "In three."]})
    {'caption': 'A waltz.', 'dataset': {'captions': ['In three.']}}
    """
    values = {name: _plain(value) for name, value in row.items() if value is not None}
    facts: dict[str, Any] = {}
    for name in sorted(values, key=lambda name: _rank(name, _CAPTION_NAMES)):
        value = values[name]
        texts = [text for text in (value if isinstance(value, list) else [value]) if text]
        if name.lower() in _CAPTION_NAMES and texts and isinstance(texts[0], str):
            facts["caption"] = texts[0]
            del values[name]
            if len(texts) > 1:
                values[name] = texts[1:]
            break
    return facts | ({"dataset": values} if values else {})


def _rank(name: str, names: tuple[str, ...]) -> int:
    lowered = name.lower()
    return names.index(lowered) if lowered in names else len(names)


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_bytes(kind.field(position).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _any_magic(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    for row in rows:
        value = row[name]
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is not None and data.startswith(_MAGICS):
            return True
    return False


def _any_midi_name(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row[name] is not None and kind_of(row[name]) is Kind.MIDI for row in rows)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
