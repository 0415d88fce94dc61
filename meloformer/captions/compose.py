"""Writes a caption: decides what it says, then draws sentences and words for it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from meloformer.captions import phrases_en, phrases_zh
from meloformer.captions.label_words import label_in_language
from meloformer.captions.patterns import Pattern, PatternPool, patterns_of, pool_of
from meloformer.captions.units import (
    MOST_NAMED_INSTRUMENTS,
    READINESS,
    families_of,
    mentions_of,
    sayable,
)

_WORDS: dict[str, ModuleType] = {"en": phrases_en, "zh": phrases_zh}

# Units that can stand before the noun, in the order in which they do.
_ADJECTIVES = ("mood", "brief", "density", "dynamics", "pace")
_MOST_ADJECTIVES = 3
# Units that a list of keywords says in their order.
_KEYWORD_ORDER = (
    *("genre", "mood", "pace", "brief", "key", "bpm", "metre", "instruments", "main"),
    *("families", "drums", "no_drums", "scene", "texture", "density", "register", "dynamics"),
    *("chords", "length", "notes"),
)
# Of all captions, those that are lists.
_KEYWORDS_SHARE = 0.12
# Of the sentences that follow, those that say two things where two can be said in one.
_TWO_IN_A_TAIL_SHARE = 0.4


@dataclass(frozen=True)
class Caption:
    """One caption.

    Args:
        text: its sentences.
        template: names of the patterns it is made of, with `+` between.
        mentions: what it says of the attributes, see `units.mentions_of`.
    """

    text: str
    template: str
    mentions: list[Any]


def compose(
    attributes: Mapping[str, Any],
    language: str,
    random: random.Random,
    patterns: Sequence[Pattern] | PatternPool | None = None,
    detail: float | None = None,
) -> Caption:
    """Write one caption; the same state of `random` writes the same.

    Args:
        attributes: as in `captions.jsonl`; what is None or absent is not said.
        language: `en` or `zh`.
        random: draws everything.
        patterns: sentences that may be used; None: all of the language. A pool saves time.
        detail: 0 vague (one thing, in a word) .. 1 exact (all there is, in numbers); None draws it.
    """
    if patterns is None:
        patterns = patterns_of(language)
    if detail is None:
        detail = random.random()
    known = attributes_in_language(attributes, language)
    units = choose_units(known, random, detail)
    words = _WORDS[language]
    # Two subjects at least make a list.
    pool = patterns if isinstance(patterns, PatternPool) else pool_of(patterns)
    if len(units) > 1 and random.random() < _KEYWORDS_SHARE:
        return _keywords(known, units, words, random, pool)
    return _sentences(known, units, words, random, pool)


def attributes_in_language(attributes: Mapping[str, Any], language: str) -> dict[str, Any]:
    """The attributes without labels that have no words in a language."""
    labels = {
        kind: said
        for kind, names in (attributes.get("labels") or {}).items()
        if (said := [name for name in names if label_in_language(kind, name, language)])
    }
    return {**attributes, "labels": labels}


def choose_units(attributes: Mapping[str, Any], random: random.Random, detail: float) -> list[str]:
    """Draw what is to be said, and in which form."""
    subjects = sayable(attributes)
    number = round(1 + detail * (len(subjects) - 1) * random.uniform(0.7, 1.0))
    # Weighted, without replacement: Efraimidis and Spirakis 2006.
    drawn = {subject: random.random() ** (1 / READINESS[subject]) for subject in subjects}
    chosen = sorted(subjects, key=drawn.__getitem__, reverse=True)[:number]
    exactly = {subject: random.random() < 0.1 + 0.8 * detail for subject in chosen}
    instruments_named = _instruments_unit(attributes, random, detail)
    units = []
    for subject in chosen:
        match subject:
            case "tempo":
                units.append("bpm" if exactly[subject] else "pace")
            case "length":
                units.append("length" if exactly[subject] else "brief")
            case "density":
                units.append("notes" if exactly[subject] else "density")
            case "instruments":
                units.append(instruments_named)
            case "drums":
                # Whoever names the instruments has said it.
                if "instruments" not in chosen or instruments_named == "families":
                    units.append("drums" if attributes["has_drums"] else "no_drums")
            case _:
                units.append(subject)
    return units


def _instruments_unit(attributes: Mapping[str, Any], random: random.Random, detail: float) -> str:
    """All by name, those with the most notes, or families."""
    instruments = attributes.get("instruments") or ()
    if len(instruments) <= MOST_NAMED_INSTRUMENTS * (0.25 + 0.75 * detail):
        return "instruments"
    main = attributes.get("main_instruments")
    families = families_of(attributes)
    if families and len(families) <= 4 and (not main or random.random() < 0.4):
        return "families"
    return "main" if main else "instruments"


def _keywords(
    attributes: Mapping[str, Any],
    units: list[str],
    words: ModuleType,
    random: random.Random,
    pool: PatternPool,
) -> Caption:
    said = [unit for unit in _KEYWORD_ORDER if unit in units]
    keywords = words.LIST_COMMA.join(words.keyword(unit, attributes, random) for unit in said)
    pattern = random.choice(pool.keywords)
    text = pattern.text.format(keywords=keywords)
    return Caption(text, pattern.name, mentions_of(said, attributes))


def _sentences(
    attributes: Mapping[str, Any],
    units: list[str],
    words: ModuleType,
    random: random.Random,
    pool: PatternPool,
) -> Caption:
    adjectives: dict[str, str] = {}
    for unit in _ADJECTIVES:
        wanted = unit in units and len(adjectives) < _MOST_ADJECTIVES
        # A length in a word has no sentence of its own; the others may go into one.
        if wanted and (unit == "brief" or random.random() < 0.75):
            word = words.adjective(unit, attributes, random)
            if word is not None:
                adjectives[unit] = word
    genre = "genre" if "genre" in units and random.random() < 0.85 else None
    genre_word = words.phrase(genre, attributes, random) if genre else None
    frame = words.thing(list(adjectives.values()), genre_word, random)
    left = [unit for unit in units if unit not in adjectives and unit != genre]

    opening = _draw_opening(left, random, pool)
    said = [*adjectives, *([genre] if genre else [])]
    used = [opening]
    texts = [fill(opening, frame, attributes, words, random)]
    left = [unit for unit in left if unit not in opening.says]
    random.shuffle(left)
    while left:
        tail = _draw_tail(left, random, pool)
        if tail is None:  # only a word before the noun would say it
            left = left[1:]
            continue
        used.append(tail)
        texts.append(fill(tail, frame, attributes, words, random))
        left = [unit for unit in left if unit not in tail.says]
    said += [unit for unit in units if any(unit in pattern.says for pattern in used)]
    template = "+".join(pattern.name for pattern in used)
    return Caption(words.finish(" ".join(texts)), template, mentions_of(said, attributes))


def fill(
    pattern: Pattern,
    frame: Mapping[str, str],
    attributes: Mapping[str, Any],
    words: ModuleType,
    random: random.Random,
) -> str:
    """A pattern with words in its slots; articles and capitals are left to `finish`."""
    # In a fixed order: sets of strings have another in every process.
    slots = {unit: unit for unit in sorted(pattern.says) if f"{{{unit}}}" in pattern.text}
    said = {unit: words.phrase(unit, attributes, random) for unit in slots}
    return pattern.text.format(**frame, **said)


def _draw_opening(left: list[str], random: random.Random, pool: PatternPool) -> Pattern:
    """An opening that says nothing beyond what is left to say; those that say more are likelier."""
    unsaid = set(left)
    fitting = [(says, members) for says, members in pool.openings if says <= unsaid]
    weights = [1.0 + 2.0 * len(says) for says, _ in fitting]
    ((_, members),) = random.choices(fitting, weights)
    return random.choice(members)


def _draw_tail(left: list[str], random: random.Random, pool: PatternPool) -> Pattern | None:
    """A sentence for the first thing that is left, perhaps together with another one."""
    unsaid = set(left)
    fitting = [pattern for pattern in pool.tails.get(left[0], ()) if pattern.says <= unsaid]
    two = [pattern for pattern in fitting if len(pattern.says) > 1]
    one = [pattern for pattern in fitting if len(pattern.says) == 1]
    if two and (not one or random.random() < _TWO_IN_A_TAIL_SHARE):
        return random.choice(two)
    return random.choice(one) if one else None
