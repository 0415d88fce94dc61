"""Sentences about music that there is not: every key, tempo and instrument alike, for the heads.

A corpus knows few keys and fewer instruments; a user may ask for all of them.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from meloformer.captions.compose import compose
from meloformer.captions.label_words import GENRES, MOODS, SCENES
from meloformer.captions.patterns import Pattern
from meloformer.midi.grid import (
    DRUMS,
    METRE_STEPS,
    METRES,
    NUM_INSTRUMENTS,
    STEPS_PER_QUARTER,
    TEMPOS_BPM,
)
from meloformer.midi.instrument_names import FAMILIES, family
from meloformer.tokens.vocabulary import (
    NO_CHORD,
    NUM_KEYS,
    chord_name,
    density_bin,
    key_name,
    length_bin,
)

_USUAL_METRES = (
    "4/4",
    "3/4",
    "2/4",
    "6/8",
    "12/8",
    "9/8",
    "2/2",
    "3/8",
    "5/4",
    "7/8",
    "6/4",
    "3/2",
)
_METRE_NAMES = tuple("{}/{}".format(*metre) for metre in METRES)
_RARE_METRES_SHARE = 0.15
# A tempo in words or in numbers is mostly one that people play.
_USUAL_TEMPOS_BPM = (40.0, 220.0)
_MOST_BARS = 256
_DENSITIES = (0.3, 24.0)
_MOST_INSTRUMENTS = 12
_DRUMS_SHARE = 0.4
_LABEL_SHARE = 0.3


@dataclass(frozen=True)
class AttributeSentence:
    """A sentence, and what it says.

    Args:
        text: the sentence.
        language: of it.
        attributes: as in `captions.jsonl`.
        mentions: those that the sentence says, see `captions.units.mentions_of`; None where
            nobody knows.
    """

    text: str
    language: str
    attributes: dict[str, Any]
    mentions: list[Any] | None


def random_sentences(
    count: int, language: str, seed: int, patterns: Sequence[Pattern] | None = None
) -> Iterator[AttributeSentence]:
    """Sentences about random attributes; the same seed gives the same ones.

    Args:
        count: how many.
        language: `en` or `zh`.
        seed: draws everything.
        patterns: that may be used; None: all of the language.
    """
    draws = random.Random(f"{seed}/{language}")
    for _ in range(count):
        attributes = random_attributes(draws)
        caption = compose(attributes, language, draws, patterns)
        yield AttributeSentence(caption.text, language, attributes, caption.mentions)


def random_attributes(draws: random.Random) -> dict[str, Any]:
    """Attributes as in `captions.jsonl`, each drawn for itself, as far as they allow that."""
    low, high = _USUAL_TEMPOS_BPM
    usual = [index for index, bpm in enumerate(TEMPOS_BPM.tolist()) if low <= bpm <= high]
    tempo = draws.choice(usual)
    bpm = float(TEMPOS_BPM[tempo])
    is_rare = draws.random() < _RARE_METRES_SHARE
    metre = _METRE_NAMES.index(draws.choice(_METRE_NAMES if is_rare else _USUAL_METRES))
    bars = round(_MOST_BARS ** draws.random())
    quarters = bars * int(METRE_STEPS[metre]) / STEPS_PER_QUARTER
    sparse, dense = _DENSITIES
    density = round(sparse * (dense / sparse) ** draws.random(), 2)
    instruments = _instruments(draws)
    key = None if instruments == [DRUMS] else draws.randrange(NUM_KEYS)
    families = sorted({f for index in instruments if (f := family(index)) is not None})
    return {
        "tempo_bpm": bpm,
        "tempo_index": tempo,
        "metre": _METRE_NAMES[metre],
        "metre_index": metre,
        "key": None if key is None else key_name(key),
        "key_index": key,
        "bars": bars,
        "length_bin": int(length_bin(bars)),
        "seconds": round(quarters * 60 / bpm, 1),
        "instruments": instruments,
        "main_instruments": draws.sample(instruments, min(3, len(instruments))),
        "families": [FAMILIES[index].en for index in families],
        "has_drums": DRUMS in instruments,
        "density": density,
        "density_bin": density_bin(density),
        "register": None if key is None else draws.choice(("low", "middle", "high")),
        "dynamics": draws.choice(("soft", "moderate", "loud")),
        "chords": [] if key is None else _chords(draws),
        "texture": draws.choice(("thin", "chordal", "polyphonic", "layered")),
        "labels": {
            kind: [draws.choice(list(names))]
            for kind, names in (("genre", GENRES), ("mood", MOODS), ("scene", SCENES))
            if draws.random() < _LABEL_SHARE
        },
    }


def _instruments(draws: random.Random) -> list[int]:
    # Few more often than many.
    number = round(_MOST_INSTRUMENTS ** draws.random())
    found = set(draws.sample([i for i in range(NUM_INSTRUMENTS) if i != DRUMS], number))
    if draws.random() < _DRUMS_SHARE:
        found.add(DRUMS)
        found -= {draws.choice(sorted(found - {DRUMS}))}
    return sorted(found)


def _chords(draws: random.Random) -> list[str]:
    if draws.random() < 0.5:
        return []
    return [chord_name(draws.randrange(NO_CHORD)) for _ in range(draws.randint(2, 4))]
