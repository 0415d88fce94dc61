"""Attribute heads beside a bridge: which texts they learn from, and what they refuse."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from meloformer.bridge.attribute_heads import AttributeHeads
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_states import EncodedText, TextStatesFolder, write_states
from meloformer.bridge_training import heads_cache
from meloformer.bridge_training import heads_of_captions as module
from meloformer.bridge_training.attribute_sentences import AttributeSentence, random_sentences
from meloformer.bridge_training.attribute_training import HeadTraining
from meloformer.bridge_training.heads_of_captions import (
    HeadsOfCaptions,
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


def asked(
    states: TextStatesFolder,
    captions: Path,
    encoder: TextEncoder,
    seed: int = 0,
    config: HeadsOfCaptionsConfig = BRIEF,
) -> HeadsOfCaptions:
    return heads_of_captions(states, captions, lambda: encoder, seed=seed, config=config)


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
    heads, scores, note = asked(states, captions, encoder)
    assert note == ""
    assert heads.config.encoder_fingerprint == encoder.fingerprint
    assert "gate_key" in scores
    train, valid = seen
    window_texts = {text.text: text.split for text in states.texts}
    splits = [window_texts.get(sentence.text) for sentence in train]
    assert splits == ["train"] * 6 + [None] * 5  # of seven captions six, then the sentences
    assert [window_texts[sentence.text] for sentence in valid] == ["valid"] * 3
    assert all(sentence.mentions is not None for sentence in train + valid)


def no_encoder() -> TextEncoder:
    raise AssertionError("nothing has to be encoded")


def same(one: AttributeHeads, other: AttributeHeads) -> bool:
    weights = one.state_dict()
    return all(torch.equal(weights[name], value) for name, value in other.state_dict().items())


def test_heads_are_trained_once_for_a_caption_set_an_encoder_a_seed_and_settings(
    encoder: TextEncoder, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = written(encoder, captions)
    first = asked(states, captions, encoder)
    trained = []
    train = module.train_heads

    def counted(*arguments: Any, **more: Any) -> AttributeHeads:
        trained.append(arguments)
        return train(*arguments, **more)

    monkeypatch.setattr(module, "train_heads", counted)
    again = heads_of_captions(states, captions, no_encoder, seed=0, config=BRIEF)
    assert not trained and "those of" in again.note
    assert same(first.heads, again.heads) and not again.heads.training
    assert {name: str(score) for name, score in again.scores.items()} == {
        name: str(score) for name, score in first.scores.items()
    }
    longer = replace(BRIEF, training=HeadTraining(epochs=2))
    # The random sentences do not follow from the epochs: they lie there.
    assert not same(first.heads, asked(states, captions, encoder, config=longer).heads)
    assert not same(first.heads, asked(states, captions, encoder, seed=1).heads)
    assert len(trained) == 2
    assert same(
        first.heads, heads_of_captions(states, captions, no_encoder, seed=0, config=BRIEF)[0]
    )


def test_damaged_heads_and_heads_of_other_captions_are_not_taken(
    encoder: TextEncoder, captions: Path
) -> None:
    states = written(encoder, captions)
    first = asked(states, captions, encoder)
    (folder,) = captions.parent.glob("states-heads-*")
    for name in ("heads.safetensors", "heads.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:50])
        again = asked(states, captions, encoder)
        assert again.note == "" and same(first.heads, again.heads)
    captions.write_text(captions.read_text().replace('"has_drums":', '"has_drums": ', 1))
    assert asked(states, captions, encoder).note == ""


def test_a_place_that_takes_no_heads_ends_no_run(
    encoder: TextEncoder, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(heads_cache, "save_heads", refuse)
    found = asked(written(encoder, captions), captions, encoder)
    assert "cannot be written (Read-only file system)" in found.note and "\n" not in found.note
    assert not list(captions.parent.glob("states-heads-*/heads.json"))


def test_the_states_of_random_sentences_are_encoded_once(
    encoder: TextEncoder, captions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = written(encoder, captions)
    asked(states, captions, encoder)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextEncoder, "encode_each", refuse)
    asked(states, captions, encoder, config=replace(BRIEF, training=HeadTraining(epochs=2)))


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
    assert joined.lengths.tolist() == [
        len(ids) for ids in encoder.token_ids([texts[2], texts[0], *reversed(texts)])
    ]
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
        asked(states, captions, other)
