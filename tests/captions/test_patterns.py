"""Sentence patterns: what a caption can be made of, and what is kept for the judge."""

import pytest

from meloformer.captions.patterns import (
    LANGUAGES,
    check_languages,
    held_out_names,
    patterns_of,
    slots_of,
    split_patterns,
)
from meloformer.captions.units import MENTIONS, READINESS
from meloformer.errors import ConfigError


@pytest.mark.parametrize("language", LANGUAGES)
def test_patterns_have_names_and_texts_of_their_own(language):
    patterns = patterns_of(language)
    assert len({p.name for p in patterns}) == len({p.text for p in patterns}) == len(patterns)
    assert len(patterns) > 120


@pytest.mark.parametrize("language", LANGUAGES)
def test_slots_are_units_and_every_unit_has_a_sentence(language):
    frames = {"thing", "classifier", "keywords"}
    tails = set()
    for pattern in patterns_of(language):
        assert slots_of(pattern.text) <= set(MENTIONS) | frames
        assert pattern.says <= set(MENTIONS)
        if pattern.kind == "opening":
            assert "thing" in slots_of(pattern.text)
        elif pattern.kind == "tail":
            assert pattern.says and not slots_of(pattern.text) & frames
            tails |= pattern.says if len(pattern.says) == 1 else set()
    # A length in a word always stands before the noun.
    assert tails == set(MENTIONS) - {"brief"}


def test_a_group_says_the_same_in_both_languages():
    said = {language: {(p.kind, p.group) for p in patterns_of(language)} for language in LANGUAGES}
    assert said["en"] == said["zh"]
    for language in LANGUAGES:
        for group in {p.group for p in patterns_of(language)} - {"two"}:
            assert len({p.says for p in patterns_of(language) if p.group == group}) == 1


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("share", [0.01, 0.25, 0.99])
def test_held_out_and_other_patterns_can_each_say_everything(language, share):
    held_out = held_out_names(language, share, seed=1)
    train, judge = split_patterns(language, held_out)
    assert {p.name for p in judge} == held_out
    assert not {p.name for p in train} & held_out
    assert len(train) + len(judge) == len(patterns_of(language))
    groups = {p.group for p in patterns_of(language)}
    assert {p.group for p in train} == {p.group for p in judge} == groups


def test_the_seed_decides_what_is_held_out_and_no_share_holds_nothing_out():
    assert held_out_names("en", 0.25, 0) == held_out_names("en", 0.25, 0)
    assert held_out_names("en", 0.25, 0) != held_out_names("en", 0.25, 1)
    train, judge = split_patterns("zh", held_out_names("zh", 0.0, 0))
    assert list(train) == list(judge) == list(patterns_of("zh"))


@pytest.mark.parametrize("languages", [("fr",), ("en", "de"), (), ("en", "en")])
def test_a_language_without_patterns_is_refused(languages):
    with pytest.raises(ConfigError, match=r"--languages.*allowed"):
        check_languages(languages)


def test_every_subject_has_units():
    assert {*MENTIONS.values()} - {"main", "families"} == set(READINESS)
