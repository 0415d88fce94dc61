"""What a caption can say: the units, each a part of the attributes in one form."""

from collections.abc import Mapping
from typing import Any

from meloformer.midi.grid import DRUMS
from meloformer.midi.instrument_names import family

# Most instruments that a sentence names one by one.
MOST_NAMED_INSTRUMENTS = 12

# Unit -> what a caption that holds it mentions, and how readily a caption holds it. `brief` is the
# length in a word, `notes` the density as a number, `main` the instruments with the most notes.
MENTIONS = {
    "pace": "tempo",
    "bpm": "tempo",
    "key": "key",
    "metre": "metre",
    "instruments": "instruments",
    "main": "main",
    "families": "families",
    "drums": "drums",
    "no_drums": "drums",
    "length": "length",
    "brief": "length",
    "density": "density",
    "notes": "density",
    "register": "register",
    "dynamics": "dynamics",
    "chords": "chords",
    "texture": "texture",
    "genre": "genre",
    "mood": "mood",
    "scene": "scene",
}
READINESS = {
    "tempo": 3.0,
    "key": 3.0,
    "instruments": 3.0,
    "genre": 4.0,
    "mood": 3.0,
    "scene": 2.0,
    "metre": 2.0,
    "length": 1.5,
    "density": 1.0,
    "drums": 1.0,
    "texture": 1.0,
    "chords": 0.8,
    "register": 0.7,
    "dynamics": 0.7,
}


def sayable(attributes: Mapping[str, Any]) -> list[str]:
    """Subjects (keys of READINESS) of which these attributes know something.

    Args:
        attributes: as in `captions.jsonl`; what is None, empty or absent is not known.
    """
    labels = attributes.get("labels") or {}
    instruments = attributes.get("instruments")
    known = {
        "tempo": attributes.get("tempo_bpm"),
        "key": attributes.get("key_index") is not None,
        "instruments": instruments,
        "metre": attributes.get("metre"),
        "length": attributes.get("bars"),
        "density": attributes.get("density"),
        # Of a kit alone nobody asks whether it has drums.
        "drums": attributes.get("has_drums") is not None and instruments != [DRUMS],
        "texture": attributes.get("texture"),
        "chords": attributes.get("chords"),
        "register": attributes.get("register"),
        "dynamics": attributes.get("dynamics"),
        "genre": labels.get("genre"),
        "mood": labels.get("mood"),
        "scene": labels.get("scene"),
    }
    return [subject for subject in READINESS if known[subject]]


def mentions_of(units: list[str], attributes: Mapping[str, Any]) -> list[Any]:
    """What a caption says, by the names of the attributes.

    Where it names some instruments alone, they stand as an object; whole families are not named
    at all, since they say of no instrument that it plays.

    >>> mentions_of(["bpm", "main"], {"main_instruments": [1]})
    ['tempo', {'instruments': [1]}]
    """
    found: list[Any] = []
    for unit in units:
        name: Any = MENTIONS[unit]
        if name == "main":
            name = {"instruments": sorted(attributes["main_instruments"])}
        if name != "families" and name not in found:
            found.append(name)
    return found


def families_of(attributes: Mapping[str, Any]) -> list[int]:
    """Families 0..15 of the instruments, ascending, without the drum kit."""
    families = {family(index) for index in attributes.get("instruments") or ()}
    return sorted(index for index in families if index is not None)
