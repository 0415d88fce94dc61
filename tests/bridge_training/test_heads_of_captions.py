"""Attribute heads beside a bridge: which texts they learn from, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_states import EncodedText, TextStatesFolder, write_states
from meloformer.bridge_training import heads_of_captions as module
from meloformer.bridge_training.attribute_sentences import AttributeSentence, random_sentences
from meloformer.bridge_training.attribute_training import HeadTraining
from meloformer.bridge_training.heads_of_captions import (
    HeadsOfCaptionsConfig,
    JoinedStates,
    heads_of_captions,
)
from meloformer.captions.caption_set import (
    FORMAT_NAME,
    FORMAT_VERSION,
    WindowCaptions,
    facts_path,
)
from meloformer.captions.patterns import held_out_names, patterns_of
from meloformer.errors import ConfigError
from tests.bridge.text_encoders import write_qwen3

HELD_OUT = {language: sorted(held_out_names(language, 0.25, 0)) for language in ("en", "zh")}
BRIEF = HeadsOfCaptionsConfig(captions=6, sentences=5, scored=4, training=HeadTraining(epochs=1))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_qwen3(tmp_path_factory.mktemp("qwen3"), max_tokens=1024))


def write_caption_set(path: Path, *, mentions_known: bool = True) -> list[EncodedText]:
    """Ten windows with two captions each; the last one is a user's, of unknown content."""
    texts = []
    with path.open("w", encoding="utf-8") as file:
        for number, sentence in enumerate(random_sentences(10, "en", seed=5)):
            split = "valid" if number >= 7 else "train"
            mentions: list[Any] = [sentence.mentions if mentions_known else None, None]
            window = WindowCaptions(
                location=f"{number}.mid",
                key=f"piece-{number}",
                split=split,
                first_bar=0,
                last_bar=8,
                captions={"en": [sentence.text, "What the user wrote."]},
                templates={"en": ["t", "user"]},
                mentions={"en": mentions},
                attributes=sentence.attributes,
            )
            file.write(window.to_line())
            for text in window.captions["en"]:
                name = dict(
                    zip(("split", "key", "first_bar", "last_bar"), window.name, strict=True)
                )
                texts.append(EncodedText(text=text, language="en", **name))  # type: ignore[arg-type]
    facts = {"name": FORMAT_NAME, "format": FORMAT_VERSION, "held_out_templates": HELD_OUT}
    facts_path(path).write_text(json.dumps(facts))
    return texts


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


def written(encoder: TextEncoder, captions: Path, **known: bool) -> TextStatesFolder:
    texts = write_caption_set(captions, **known)
    return write_states(encoder, texts, captions.with_name("states"))


def test_heads_learn_from_training_captions_and_random_sentences(
    encoder: TextEncoder, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[AttributeSentence]] = []
    targets = module._targets

    def watched(sentences: list[AttributeSentence]) -> Any:
        seen.append(list(sentences))
        return targets(sentences)

    monkeypatch.setattr(module, "_targets", watched)
    states = written(encoder, captions)
    heads, scores = heads_of_captions(states, captions, encoder, seed=0, config=BRIEF)
    assert heads.config.encoder_fingerprint == encoder.fingerprint
    assert "gate_key" in scores
    train, valid = seen
    window_texts = {text.text: text.split for text in states.texts}
    splits = [window_texts.get(sentence.text) for sentence in train]
    assert splits == ["train"] * 6 + [None] * 5  # of seven captions six, then the sentences
    assert [window_texts[sentence.text] for sentence in valid] == ["valid"] * 3
    assert all(sentence.mentions is not None for sentence in train + valid)


def test_the_states_of_random_sentences_are_encoded_once(
    encoder: TextEncoder, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = written(encoder, captions)
    first, _ = heads_of_captions(states, captions, encoder, seed=0, config=BRIEF)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextEncoder, "encode_each", refuse)
    second, _ = heads_of_captions(states, captions, encoder, seed=0, config=BRIEF)
    assert all(
        torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items()
    )


def test_no_sentence_for_training_has_a_pattern_that_is_kept_for_the_judge(captions: Path) -> None:
    write_caption_set(captions)
    patterns = {pattern.name: pattern for pattern in patterns_of("en")}
    held_out = {patterns[name] for name in HELD_OUT["en"]}
    kept = tuple(pattern for pattern in patterns.values() if pattern not in held_out)
    found = list(module._sentences_for_training(captions, "en", 50, seed=0))
    assert found == list(random_sentences(50, "en", 0, kept))
    assert found != list(random_sentences(50, "en", 0))


def test_texts_of_several_folders_come_back_in_the_order_asked_for(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    texts = ["A.", "A fast rock piece in E minor.", "Strings play slowly."]
    one = write_states(encoder, texts, tmp_path / "one")
    two = write_states(encoder, list(reversed(texts)), tmp_path / "two")
    joined = JoinedStates([(one, [2, 0]), (two, range(3))])
    assert len(joined) == 5
    found = joined.batch([4, 0, 3, 1])
    expected = encoder.encode([texts[0], texts[2], texts[1], texts[0]])
    assert torch.equal(found.mask_BL, expected.mask_BL)
    torch.testing.assert_close(found.states_BLW, expected.states_BLW, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled_BW, expected.pooled_BW, atol=1e-5, rtol=0)


def test_captions_of_which_nobody_knows_what_they_say_are_refused(
    encoder: TextEncoder, captions: Path
) -> None:
    states = written(encoder, captions, mentions_known=False)
    with pytest.raises(ConfigError, match="found no caption of a training piece"):
        heads_of_captions(states, captions, None, seed=0, config=BRIEF)


def test_states_of_another_encoder_are_refused(
    encoder: TextEncoder, captions: Path, tmp_path: Path
) -> None:
    states = written(encoder, captions)
    other = TextEncoder.load(write_qwen3(tmp_path / "other", seed=1))
    with pytest.raises(ConfigError, match="found states of the text encoder"):
        heads_of_captions(states, captions, other, seed=0, config=BRIEF)
