"""English words for the units of a caption, and the finish of a sentence."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from meloformer.captions.label_words import genre_words, is_form, label_in_language
from meloformer.captions.units import families_of
from meloformer.captions.word_bins import brief_bin, density_word_bin, pace_bin
from meloformer.midi.instrument_names import FAMILIES, instrument

LIST_COMMA = ", "

_PACE = (
    ("very slow", "extremely slow"),
    ("slow", "unhurried"),
    ("relaxed", "easy-going"),
    ("moderate", "medium"),
    ("lively", "upbeat"),
    ("fast", "quick", "brisk"),
    ("very fast", "racing"),
)
# Before a noun: "a moderate piece" would not speak of the tempo.
_PACE_OF_A_PIECE = {3: ("moderately paced", "medium-tempo", "mid-tempo")}
_BRIEF = (("short", "brief"), ("medium-length",), ("long", "extended"))
_DENSITY = (("sparse", "spacious"), ("moderately busy", "moderately dense"), ("busy", "dense"))
_DYNAMICS = {
    "soft": ("soft", "quiet"),
    "moderate": ("moderately loud", "neither loud nor soft"),
    "loud": ("loud", "powerful"),
}
_TEXTURE = {
    "percussion": ("percussion alone",),
    "monophonic": ("a single melodic line", "one unaccompanied line"),
    "thin": ("two light voices or so", "a few thin lines"),
    "chordal": ("block chords", "full chords"),
    "polyphonic": ("several independent voices", "interwoven voices"),
    "layered": ("many layers of sound", "a rich web of layers"),
}
_NOUNS = ("piece", "piece", "piece", "tune", "track", "instrumental")
# Spellings of a key with fewer accidentals than the vocabulary's, or as few.
_SPELLINGS = {
    "C# major": ("Db major",),
    "F# major": ("F# major", "Gb major"),
    "Eb minor": ("Eb minor", "D# minor"),
    "Ab minor": ("G# minor",),
}
_FLATS = {"C#": "Db", "F#": "Gb"}
_SHARPS = {"Eb": "D#", "Ab": "G#", "Bb": "A#"}
_FLAT_KEYS = {
    *(f"{tonic} major" for tonic in ("F", "Bb", "Eb", "Ab", "C#")),
    *(f"{tonic} minor" for tonic in ("D", "G", "C", "F", "Bb")),
}
_CHORD_SIGNS = {"maj": "", "min": "m", "min7": "m7", "dom7": "7"}
_METRE_WORDS = {"4/4": "four-four", "3/4": "three-four", "2/4": "two-four", "6/8": "six-eight"}

# Letters that are said with a vowel in front, as single capitals are.
_VOWEL_LETTERS = "AEFHILMNORSX"


def key_phrase(name: str, random: random.Random) -> str:
    """`Eb major` as people write it: `E-flat major`, `Eb major`."""
    tonic, mode = random.choice(_SPELLINGS.get(name, (name,))).split()
    if len(tonic) > 1 and random.random() < 0.5:
        tonic = tonic[0] + {"b": "-flat", "#": "-sharp"}[tonic[1]]
    return f"{tonic} {mode}"


def bpm_phrase(tempo_bpm: float, random: random.Random) -> str:
    """`about 120 BPM`; the grid of tempos makes it about."""
    bpm = round(tempo_bpm)
    return random.choice(
        (f"{bpm} BPM", f"about {bpm} BPM", f"{bpm} beats per minute", f"around {bpm} BPM")
    )


def length_phrase(attributes: Mapping[str, Any], random: random.Random) -> str:
    """`16 bars`, or the seconds where they are known."""
    bars, seconds = attributes["bars"], attributes.get("seconds")
    if seconds is None or random.random() < 0.5:
        return f"{bars} bar{'s' * (bars != 1)}"
    if seconds < 90:
        rounded = max(round(seconds / 5) * 5, 5)
        return f"about {rounded} seconds"
    halves = round(seconds / 30)
    minutes, half = divmod(halves, 2)
    number = "one" if minutes == 1 else str(minutes)
    return f"about {number} and a half minutes" if half else f"about {number} minutes"


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def chord_signs(attributes: Mapping[str, Any]) -> list[str]:
    """Chords as people write them, with the flats or the sharps of the key.

    >>> chord_signs({"key": "C# major", "chords": ["C#maj", "Ebmin7"]})
    ['Db', 'Ebm7']
    >>> chord_signs({"key": "E major", "chords": ["Emaj", "C#min", "Abdom7"]})
    ['E', 'C#m', 'G#7']
    """
    key = attributes.get("key")
    roots = {} if key is None else _FLATS if key in _FLAT_KEYS else _SHARPS
    signs = []
    for chord in attributes["chords"]:
        match = re.fullmatch(r"([A-G][b#]?)(.+)", chord)
        assert match is not None, chord
        signs.append(roots.get(match[1], match[1]) + _CHORD_SIGNS.get(match[2], match[2]))
    return signs


def phrase(unit: str, attributes: Mapping[str, Any], random: random.Random) -> str:
    """Words for the slot of a unit that the attributes know."""
    labels = attributes.get("labels") or {}
    match unit:
        case "pace":
            return random.choice(_PACE[pace_bin(attributes["tempo_bpm"])])
        case "bpm":
            return bpm_phrase(attributes["tempo_bpm"], random)
        case "key":
            return key_phrase(attributes["key"], random)
        case "metre":
            metre = attributes["metre"]
            return (
                _METRE_WORDS[metre] if metre in _METRE_WORDS and random.random() < 0.15 else metre
            )
        case "instruments":
            return joined([instrument(index).en for index in attributes["instruments"]])
        case "main":
            return joined([instrument(index).en for index in attributes["main_instruments"]])
        case "families":
            return joined([FAMILIES[index].en for index in families_of(attributes)])
        case "length":
            return length_phrase(attributes, random)
        case "density":
            return random.choice(_DENSITY[density_word_bin(attributes["density"])])
        case "notes":
            number = f"{attributes['density']:.0f}" if attributes["density"] >= 1.5 else "one"
            plural = "" if number == "one" else "s"
            return f"about {number} note{plural} per quarter note"
        case "register":
            return f"the {attributes['register']} register"
        case "dynamics":
            return random.choice(_DYNAMICS[attributes["dynamics"]])
        case "chords":
            return random.choice((", ", "-", " - ")).join(chord_signs(attributes))
        case "texture":
            return random.choice(_TEXTURE[attributes["texture"]])
        case "genre":
            return random.choice(genre_words(labels["genre"], "en"))
        case "mood" | "scene":
            known = [label_in_language(unit, label, "en") for label in labels[unit]]
            return random.choice([label for label in known if label is not None])
    raise AssertionError(f"no English words for {unit}")


def adjective(unit: str, attributes: Mapping[str, Any], random: random.Random) -> str | None:
    """A word that stands before the noun; None where this value has none."""
    match unit:
        case "pace":
            pace = pace_bin(attributes["tempo_bpm"])
            return random.choice(_PACE_OF_A_PIECE.get(pace, _PACE[pace]))
        case "brief":
            return random.choice(_BRIEF[brief_bin(attributes)])
        case "density":
            words = density_word_bin(attributes["density"])
            return None if words == 1 else random.choice(_DENSITY[words])
        case "dynamics":
            dynamics = attributes["dynamics"]
            return None if dynamics == "moderate" else random.choice(_DYNAMICS[dynamics])
        case "mood":
            return phrase(unit, attributes, random)
    return None


def thing(adjectives: Sequence[str], genre: str | None, random: random.Random) -> dict[str, str]:
    """The slot `thing`: adjectives, genre and noun."""
    if genre is None:
        noun = random.choice(_NOUNS)
    elif is_form(genre):
        noun = genre
    else:
        noun = f"{genre} {random.choice(_NOUNS)}"
    return {"thing": f"{', '.join(adjectives)} {noun}".strip()}


def keyword(unit: str, attributes: Mapping[str, Any], random: random.Random) -> str:
    """Words for a unit in a list of keywords."""
    if unit in ("drums", "no_drums"):
        return unit.replace("_", " ")
    if unit in ("instruments", "main"):
        indices = attributes["instruments" if unit == "instruments" else "main_instruments"]
        return LIST_COMMA.join(instrument(index).en for index in indices)
    if unit in ("pace", "brief"):
        word = adjective(unit, attributes, random)
        assert word is not None
        return word
    words = phrase(unit, attributes, random)
    return {
        "chords": f"chords {words}",
        "register": words.removeprefix("the "),
        "metre": f"{words} time",
        "density": f"{words} writing",
    }.get(unit, words)


def article(word: str) -> str:
    """`a` or `an` by how the next word is said.

    >>> [article(w) for w in ("fast", "easy", "E", "F#", "8-bar", "18", "unhurried", "unique")]
    ['a', 'an', 'an', 'an', 'an', 'an', 'an', 'a']
    """
    first = re.split(r"[\s\-,#]", word, maxsplit=1)[0]
    if re.match(r"8|11$|18$", first):
        return "an"
    if first.isupper():  # a letter, or letters said one by one
        return "an" if first[0] in _VOWEL_LETTERS else "a"
    if re.match(r"(?i)uni[^mn]|us[aeu]|eu|one\b|once\b|ukulele", first):
        return "a"
    return "an" if re.match(r"(?i)[aeiou]|hono|hour", first) else "a"


def finish(text: str) -> str:
    """Articles for `@`, a capital for each sentence.

    >>> finish("@ easy piece. it is in @ E minor mood")
    'An easy piece. It is in an E minor mood'
    """
    text = re.sub(r"@ (\S+)", lambda match: f"{article(match[1])} {match[1]}", text)
    return re.sub(
        r"(?:^|(?<=[.?!] ))([a-z])", lambda match: match[1].upper(), text, flags=re.MULTILINE
    )
