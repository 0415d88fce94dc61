"""Which columns of a table hold MIDI, name files, or say something of the music."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """

    midi: str | None
    location: str | None
    facts: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        """Every column that is read, each once."""
        named = (self.midi, self.location, *self.facts)
        return list(dict.fromkeys(name for name in named if name is not None))


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
    return Columns(midi, location, tuple(name for name in schema.names if name.lower() in known))


def facts_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of its music, as JSON takes it; columns without a value are left out.

    >>> facts_of({"caption": "A waltz.", "tempo": 90, "key": None})
    {'dataset': {'caption': 'A waltz.', 'tempo': 90}, 'caption': 'A waltz.'}
    """
    values = {name: _plain(value) for name, value in row.items() if value is not None}
    facts: dict[str, Any] = {"dataset": values} if values else {}
    for name in sorted(values, key=lambda name: _rank(name, _CAPTION_NAMES)):
        value = values[name]
        first = value[0] if isinstance(value, list) and value else value
        if name.lower() in _CAPTION_NAMES and isinstance(first, str) and first:
            return facts | {"caption": first}
    return facts


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
