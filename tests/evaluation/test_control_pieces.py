"""Who is judged: unseen pieces alone, with sentences whose wording training never saw."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from meloformer.captions.caption_set import WindowCaptions
from meloformer.errors import ConfigError
from meloformer.evaluation.control_pieces import choose_pieces, num_wishes
from meloformer.evaluation.control_scores import Wanted
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode

HELD_OUT = ["en-90", "en-91"]
FACTS = {"held_out_templates": {"en": HELD_OUT, "zh": []}}


def window(split: str, key: str, bars: int, *, first: int = 0, **changes: object) -> WindowCaptions:
    made = WindowCaptions(
        location=f"{key}.mid",
        key=key,
        split=split,
        first_bar=first,
        last_bar=first + bars,
        captions={"en": ["fast", "fast, in E minor", "a seen wording", "mine"]},
        templates={"en": ["en-90", "en-90+en-91", "en-90+en-03", "user"]},
        mentions={"en": [["tempo"], ["tempo", "key"], ["tempo", "key", "metre"], None]},
        attributes={"tempo_bpm": 150.0, "key_index": 16, "metre": "3/4", "bars": bars},
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def folder(chorale_shards: Path) -> ShardFolder:
    return ShardFolder.open(chorale_shards)


@pytest.fixture(scope="module")
def captions(folder: ShardFolder) -> list[WindowCaptions]:
    return [
        window(split, key, min(6, index.sizes(place).bars))
        for split in ("train", "valid", "test")
        for index in [folder.split(split)]
        for place, key in enumerate(index.keys())
    ]


def chosen(captions, folder, num_pieces=300, facts=FACTS, language="en", seed=0):
    return choose_pieces(
        captions, facts, folder, num_pieces=num_pieces, language=language, seed=seed
    )


def test_all_unseen_pieces_are_taken_once_and_no_training_piece(captions, folder) -> None:
    found = chosen([*captions, window("test", captions[-1].key, 4, first=2)], folder)
    unseen = {(one.split, one.key) for one in captions if one.split != "train"}
    assert {piece.name[:2] for piece in found.pieces} == unseen
    assert len(found.pieces) == len(unseen)
    assert any(f"{len(unseen)} unseen pieces and not the 300" in note for note in found.notes)


def test_the_test_split_comes_before_the_valid_one_and_the_seed_draws(captions, folder) -> None:
    num_test = sum(one.split == "test" for one in captions)
    found = chosen(captions, folder, num_test + 1)
    assert [piece.name[0] for piece in found.pieces] == ["test"] * num_test + ["valid"]
    assert [p.name for p in chosen(captions, folder, seed=1).pieces] == [
        p.name for p in chosen(captions, folder, seed=1).pieces
    ]
    assert [p.name for p in chosen(captions, folder, seed=1).pieces] != [
        p.name for p in chosen(captions, folder, seed=2).pieces
    ]


def names(found) -> list[tuple]:
    return [piece.name for piece in found.pieces]


def test_another_language_and_other_sentences_choose_the_same_pieces(captions, folder) -> None:
    """In one language two sentences say the most, so that one of them is drawn."""
    ties = [
        dataclasses.replace(
            one,
            captions=one.captions | {"zh": ["快", "慢", "E小调"]},
            templates=one.templates | {"zh": ["zh-90", "zh-91", "zh-92"]},
            mentions=one.mentions | {"zh": [["tempo"], ["tempo"], ["key"]]},
        )
        for one in captions
    ]
    facts = {"held_out_templates": {"en": HELD_OUT, "zh": ["zh-90", "zh-91", "zh-92"]}}
    num_test = sum(one.split == "test" for one in captions)
    for seed, num_pieces in ((0, 2), (0, num_test + 1), (1, num_test + 2), (2, num_test + 3)):
        found = {
            language: chosen(ties, folder, num_pieces, facts, language, seed)
            for language in ("en", "zh")
        }
        assert names(found["en"]) == names(found["zh"])
        assert names(found["en"]) == names(chosen(captions[::-1], folder, num_pieces, seed=seed))
    assert len({piece.text for piece in found["zh"].pieces}) > 1, "ties are drawn"


def test_a_piece_that_has_no_sentence_moves_no_other(captions, folder) -> None:
    before = names(chosen(captions, folder))
    gone = before[1]
    without = [
        dataclasses.replace(one, templates={"en": ["en-03"] * 4}) if one.name == gone else one
        for one in captions
    ]
    assert names(chosen(without, folder)) == [name for name in before if name != gone]


def test_the_sentence_is_the_fullest_of_unseen_wording_alone(captions, folder) -> None:
    for piece in chosen(captions, folder).pieces:
        assert piece.text == "fast, in E minor"
        assert piece.wanted == Wanted(tempo_bpm=150.0, key=16), "what it does not say is no wish"
        assert num_wishes(piece.wanted) == 2


def test_a_piece_is_read_up_to_its_window(captions, folder) -> None:
    for piece in chosen(captions, folder).pieces:
        assert decode(piece.ids).num_bars == piece.num_bars <= 6
        index = folder.split(piece.name[0])
        whole = index.read(index.keys().index(piece.name[1]))
        assert np.array_equal(piece.ids[:50], whole[:50])


def test_pieces_without_such_a_sentence_are_left_out_and_counted(captions, folder) -> None:
    seen = {"templates": {"en": ["en-03"] * 4}}
    last = dataclasses.replace(captions[-1], **seen)
    found = chosen([*captions[:-1], last], folder)
    assert last.key not in {piece.name[1] for piece in found.pieces}
    assert any(note.startswith("1 unseen pieces have no sentence") for note in found.notes)


@pytest.mark.parametrize("facts", [{}, {"held_out_templates": {"en": []}}])
def test_captions_that_held_nothing_out_are_refused(captions, folder, facts) -> None:
    with pytest.raises(ConfigError, match="held_out"):
        chosen(captions, folder, facts=facts)


def test_captions_of_other_shards_and_too_few_pieces_are_refused(captions, folder) -> None:
    others = [window("test", "f" * 16, 4), window("test", "e" * 16, 4)]
    with pytest.raises(ConfigError, match="does not hold"):
        chosen(others, folder)
    with pytest.raises(ConfigError, match="2 and more"):
        chosen([one for one in captions if one.split == "train"], folder)
