"""Sentence patterns: texts with slots, each with an id, some of them kept for the judge alone."""

import hashlib
import random
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from meloformer.captions import patterns_en, patterns_zh
from meloformer.errors import ConfigError

LANGUAGES = ("en", "zh")

Kind = Literal["opening", "tail", "keywords"]

# Slots that put together what other slots say, and say nothing themselves.
_FRAMES = {"thing", "classifier", "keywords"}


@dataclass(frozen=True)
class Pattern:
    """One sentence with slots.

    Args:
        name: its id, `en-key-03`: language, group, number in the group.
        kind: `opening` starts a caption and may hold `thing`; a `tail` follows; `keywords` stands
            alone.
        group: patterns that say the same; of each group some are held out.
        text: with slots in braces.
        says: the units (see phrases) that must be known to fill it.
    """

    name: str
    kind: Kind
    group: str
    text: str
    says: frozenset[str]

    def __hash__(self) -> int:
        return hash(self.name)


def slots_of(text: str) -> frozenset[str]:
    """Names of the slots of a text."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(text) if name)


@cache
def patterns_of(language: str) -> tuple[Pattern, ...]:
    """All patterns of a language.

    Raises:
        ConfigError: there are none in that language.
    """
    check_languages((language,))
    module = {"en": patterns_en, "zh": patterns_zh}[language]
    patterns = []
    for kind, groups in (
        ("opening", module.OPENINGS),
        ("tail", module.TAILS),
        ("keywords", module.KEYWORDS),
    ):
        for group, texts in groups.items():
            for number, text in enumerate(texts, start=1):
                says = slots_of(text) - _FRAMES
                # Some sentences say what they say without a slot: that there are no drums.
                says = says or (frozenset({group}) if kind == "tail" else says)
                name = f"{language}-{group}-{number:02}"
                patterns.append(Pattern(name, kind, group, text, says))  # type: ignore[arg-type]
    return tuple(patterns)


def check_languages(languages: Iterable[str]) -> None:
    """Refuse a language without patterns, and none at all.

    Raises:
        ConfigError: names it.
    """
    languages = tuple(languages)
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        found = unknown[0] if unknown else "none"
        raise ConfigError(f"--languages: found {found}; allowed {', '.join(LANGUAGES)}")
    if len(set(languages)) < len(languages):
        raise ConfigError(f"--languages {' '.join(languages)}: found one twice; allowed once each")


def patterns_sum(languages: Iterable[str]) -> str:
    """sha256 over the patterns of some languages: another wording makes another caption set."""
    digest = hashlib.sha256()
    for language in languages:
        for pattern in patterns_of(language):
            digest.update(f"{pattern.name}\n{pattern.text}\n".encode())
    return digest.hexdigest()


def held_out_names(language: str, share: float, seed: int) -> frozenset[str]:
    """Ids of the patterns that no caption for training may use.

    Of each group the share, at least one and never all, so that with the held-out ones alone and
    with the others alone everything can be said.

    Args:
        language: of the patterns.
        share: 0 (none are held out) up to, not with, 1.
        seed: decides which.
    """
    if not share:
        return frozenset()
    groups: dict[str, list[str]] = {}
    for pattern in patterns_of(language):
        groups.setdefault(pattern.group, []).append(pattern.name)
    held_out: set[str] = set()
    for group, names in groups.items():
        number = min(max(round(share * len(names)), 1), len(names) - 1)
        held_out |= set(random.Random(f"{seed}/{language}/{group}").sample(names, number))
    return frozenset(held_out)


def split_patterns(
    language: str, held_out: Iterable[str]
) -> tuple[tuple[Pattern, ...], tuple[Pattern, ...]]:
    """Patterns for training, and those for the judge (all, where none are held out)."""
    kept = frozenset(held_out)
    patterns = patterns_of(language)
    judge = tuple(pattern for pattern in patterns if pattern.name in kept)
    train = tuple(pattern for pattern in patterns if pattern.name not in kept)
    return train, judge or patterns


@dataclass(frozen=True)
class PatternPool:
    """Patterns as `compose` looks for them.

    Args:
        openings: those of each group, and what they say.
        tails: those that say a unit, alone or with another one.
        keywords: those for lists.
    """

    openings: tuple[tuple[frozenset[str], tuple[Pattern, ...]], ...]
    tails: dict[str, tuple[Pattern, ...]]
    keywords: tuple[Pattern, ...]


def pool_of(patterns: Sequence[Pattern]) -> PatternPool:
    """Sort patterns for `compose`; the same ones are sorted once."""
    return _pool_of(tuple(patterns))


@lru_cache(maxsize=16)
def _pool_of(patterns: tuple[Pattern, ...]) -> PatternPool:
    openings: dict[str, list[Pattern]] = {}
    tails: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        if pattern.kind == "opening":
            openings.setdefault(pattern.group, []).append(pattern)
        elif pattern.kind == "tail":
            for unit in sorted(pattern.says):
                tails.setdefault(unit, []).append(pattern)
    return PatternPool(
        tuple((members[0].says, tuple(members)) for members in openings.values()),
        {unit: tuple(members) for unit, members in tails.items()},
        tuple(pattern for pattern in patterns if pattern.kind == "keywords"),
    )
