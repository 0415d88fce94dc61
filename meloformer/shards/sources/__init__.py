"""Where MIDI comes from: folders, lists, archives, tables, the default corpus; in a fixed order.

Archives are read in place. Nothing of them is written to disk, so no name inside one can lead
anywhere, and links inside them are not followed.
"""

from meloformer.shards.sources.files import InputLostError, MidiFile, RefusedFile, carried_bytes
from meloformer.shards.sources.kinds import MIDI_SUFFIXES
from meloformer.shards.sources.source import (
    CHORALES,
    DEFAULT,
    Source,
    Survey,
    open_source,
    score_source,
)

__all__ = [
    "CHORALES",
    "DEFAULT",
    "MIDI_SUFFIXES",
    "InputLostError",
    "MidiFile",
    "RefusedFile",
    "Source",
    "Survey",
    "carried_bytes",
    "open_source",
    "score_source",
]
