"""Captions: what they say is true, and how they say it is grammar."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.captions import phrases_en, phrases_zh
from meloformer.captions.compose import attributes_in_language, compose, fill
from meloformer.captions.patterns import LANGUAGES, patterns_of, pool_of
from meloformer.captions.units import MENTIONS, mentions_of
from meloformer.midi.instrument_names import instrument
from tests.captions.attribute_sets import attributes_with, every_value, some_attributes

WORDS = {"en": phrases_en, "zh": phrases_zh}
# Letters that Chinese music writing has of its own: notes and keys, chords, BPM.
LATIN_IN_CHINESE = re.compile(r"BPM|[A-G][b#]?(?:m7|maj7|m|7|dim|aug)?(?![a-z])")


def filled(pattern, attributes, language, seed=0):
    words, draws = WORDS[language], random.Random(seed)
    adjectives = [words.adjective(unit, attributes, draws) for unit in ("brief", "pace")]
    frame = words.thing(adjectives, None, draws) | {
        "keywords": words.keyword("key", attributes, draws)
    }
    return words.finish(fill(pattern, frame, attributes, words, draws))


def check_english(text: str) -> None:
    assert not re.search(r"[{}@]|None|\s\s|\s[.,?]|[.,]{2}|^\s|\s$", text), text
    assert not re.search(r"[\u3000-\u9fff]", text), text
    for wrong in (r"\ba [aeio]", r"\ban [bcdfgjkpqtvwz]", r"\b[Aa] [AEF]\b", r"\b[Aa]n [BCDG]\b"):
        assert not re.search(wrong, text), (wrong, text)
    for number, noun in re.findall(r"\b(\d+) (bars?|minutes?|notes?|seconds?)\b", text):
        assert noun.endswith("s") == (number != "1"), text
    sentences = re.split(r"(?<=[.?]) ", text)
    is_list = "," in text and len(sentences) == 1
    assert is_list or all(not sentence[0].islower() for sentence in sentences), text


def check_chinese(text: str) -> None:
    assert not re.search(r"[{}@\s,.;?!()]|None|[，。、：]{2}|的的|^[，。]", text), text
    left = LATIN_IN_CHINESE.sub("", text)
    assert not re.search("[A-Za-z]", left), (left, text)


CHECK = {"en": check_english, "zh": check_chinese}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_pattern_takes_every_value(language):
    patterns = patterns_of(language)
    for number, attributes in enumerate(every_value()):
        known = attributes_in_language(attributes, language)
        # A slot is filled alike in every pattern: each value meets some patterns, each pattern
        # values of every kind.
        for pattern in patterns[number % 11 :: 11]:
            unknown = {unit for unit in ("genre", "mood", "scene") if unit not in known["labels"]}
            if attributes["instruments"] == [0]:
                unknown.add("families")  # a drum kit has none
            if not pattern.says & unknown:
                CHECK[language](filled(pattern, known, language))


@pytest.mark.parametrize("language", LANGUAGES)
@settings(max_examples=80)
@given(attributes=some_attributes(), seed=st.integers(0, 999), detail=st.none() | st.floats(0, 1))
def test_any_attributes_give_a_caption_that_says_only_what_is_known(
    language, attributes, seed, detail
):
    caption = compose(attributes, language, random.Random(seed), detail=detail)
    CHECK[language](caption.text)
    names = {pattern.name: pattern for pattern in patterns_of(language)}
    assert caption.text and set(caption.template.split("+")) <= set(names)
    pool = pool_of(patterns_of(language))
    assert compose(attributes, language, random.Random(seed), pool, detail) == caption
    source = {
        "tempo": "tempo_bpm",
        "length": "bars",
        "drums": "has_drums",
        "genre": "labels",
        "mood": "labels",
        "scene": "labels",
    }
    for mention in caption.mentions:
        if isinstance(mention, dict):
            assert mention == {"instruments": sorted(attributes["main_instruments"])}
        else:
            assert attributes.get(source.get(mention, mention)) is not None


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_mentioned_stands_in_the_text(language):
    attributes = attributes_with(tempo_bpm=87.0, bars=77, seconds=None, metre="7/8")
    numbers = 0
    for seed in range(300):
        caption = compose(attributes, language, random.Random(seed), detail=1.0)
        said = [mention for mention in caption.mentions if isinstance(mention, str)]
        names = [instrument(i).in_language(language) for i in attributes["instruments"]]
        assert ("instruments" in said) == all(name in caption.text for name in names)
        assert ("key" in said) == bool(re.search(r"E minor|E小调", caption.text))
        metre = "7/8" in caption.text or "八七拍" in caption.text
        assert ("metre" in said) == metre
        assert "tempo" in said or not re.search(r"87|BPM", caption.text)
        assert "length" in said or "77" not in caption.text
        assert ("genre" in said) == bool(re.search(r"\brock|摇滚", caption.text.lower()))
        numbers += "87" in caption.text
    assert numbers > 150


@pytest.mark.parametrize("language", LANGUAGES)
def test_more_detail_says_more(language):
    attributes = attributes_with()

    def mean(detail):
        captions = [
            compose(attributes, language, random.Random(n), detail=detail) for n in range(99)
        ]
        return sum(len(caption.mentions) for caption in captions) / 99

    assert mean(0.0) == 1.0 < mean(0.5) < mean(1.0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_of_one_window_differ_from_one_another(language):
    draws = random.Random(0)
    texts = {compose(attributes_with(), language, draws, detail=0.5).text for _ in range(200)}
    assert len(texts) > 190


@pytest.mark.parametrize(
    ("has_drums", "said", "never"), [(True, "rum", "no drums"), (False, "rums", "Drums keep")]
)
def test_drums_are_affirmed_and_denied_where_that_is_so(has_drums, said, never):
    attributes = {"has_drums": has_drums}
    texts = [compose(attributes, "en", random.Random(seed)).text for seed in range(60)]
    assert all(said in text and never not in text for text in texts)


def test_a_label_without_a_word_in_the_language_is_left_out():
    attributes = {"tempo_bpm": 60.0, "labels": {"genre": ["vaporwave"], "mood": ["忧伤"]}}
    english = [compose(attributes, "en", random.Random(n), detail=1.0) for n in range(30)]
    chinese = [compose(attributes, "zh", random.Random(n), detail=1.0) for n in range(30)]
    assert all("vaporwave" in caption.text for caption in english)
    assert all("忧伤" in caption.text for caption in chinese)
    for caption in (*english, *chinese):
        CHECK["zh" if caption in chinese else "en"](caption.text)


def test_a_genre_and_a_form_make_one_name():
    attributes = {"labels": {"genre": ["jazz", "waltz"]}}
    english = {compose(attributes, "en", random.Random(n)).text for n in range(200)}
    chinese = {compose(attributes, "zh", random.Random(n)).text for n in range(200)}
    assert {"A jazz waltz.", "A waltz.", "A jazz piece."} < english
    assert {"一首爵士圆舞曲。", "一首圆舞曲。"} < chinese
    assert not any("waltz piece" in text or "waltz tune" in text for text in english)


def test_families_say_of_no_instrument_that_it_plays():
    assert mentions_of(["families", "key"], {}) == ["key"]
    assert set(MENTIONS.values()) >= {"tempo", "key", "metre", "length", "density", "instruments"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@ F# minor tune.", "An F# minor tune."),
        ("@ D-flat major tune.", "A D-flat major tune."),
        ("@ R&B tune.", "An R&B tune."),
        ("@ one-minute tune. @ 11-bar tune.", "A one-minute tune. An 11-bar tune."),
        ("is it @ unusual piece? @ upbeat one.", "Is it an unusual piece? An upbeat one."),
    ],
)
def test_articles_follow_the_sound_of_the_next_word(text, expected):
    assert phrases_en.finish(text) == expected


def test_keys_are_spelled_as_people_spell_them():
    draws = random.Random(0)
    english = {phrases_en.key_phrase("C# major", draws) for _ in range(50)}
    chinese = {phrases_zh.key_phrase("Ab minor", draws) for _ in range(50)}
    assert english == {"Db major", "D-flat major"}
    assert chinese == {"升G小调"}
