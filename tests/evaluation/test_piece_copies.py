"""Copies of training pieces are found, whatever the key; new music is not one."""

import dataclasses

import numpy as np
import pytest

from meloformer.evaluation.judged_pieces import PieceSet, judge_piece
from meloformer.evaluation.piece_copies import Copies, find_copies
from meloformer.midi.quantised import QuantisedPiece
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from tests.evaluation.test_statistics import note, piece


def moved(music: QuantisedPiece, semitones: int) -> QuantisedPiece:
    return dataclasses.replace(music, pitch=music.pitch + np.int32(semitones))


def new_music() -> QuantisedPiece:
    random = np.random.default_rng(0)
    return piece(
        *(
            note(bar, 6 * k, int(random.integers(30, 100)), 6)
            for bar in range(24)
            for k in random.permutation(16)[:8].tolist()
        )
    )


@pytest.fixture(scope="module")
def found(chorale_shards) -> tuple[list[Copies], list[str]]:
    folder = ShardFolder.open(chorale_shards)
    train = folder.split("train")
    chorales = [decode(train.read(number)) for number in range(2)]
    sets = [
        PieceSet(
            name=name,
            pieces=[judge_piece(str(n), music, None) for n, music in enumerate(pieces)],
            unread=[],
        )
        for name, pieces in (
            ("copies", chorales),
            ("moved", [moved(music, 3) for music in chorales]),
            ("new", [new_music()]),
        )
    ]
    told: list[int] = []
    copies = find_copies(sets, folder, lambda done, total: told.append(total - done))
    assert told == list(range(train.num_pieces))[::-1], "the training split is read once"
    return copies, [train.key(number) for number in range(2)]


def test_a_copy_is_found_bar_for_bar_and_by_its_tune(found) -> None:
    (copies, _, _), keys = found
    assert copies.shares["verbatim"].tolist() == copies.shares["transposed"].tolist() == [1, 1]
    assert copies.nearest == keys and (copies.overlap > 0.95).all()
    assert copies.tunes.tolist() == [1, 1] and copies.longest_run["verbatim"] > 4


def test_a_transposed_copy_is_found_by_likeness_and_by_its_tune(found) -> None:
    (copies, other, _), keys = found
    assert other.shares["transposed"].tolist() == [1, 1]
    assert other.longest_run["transposed"] >= copies.longest_run["verbatim"]
    assert (other.shares["verbatim"] < 0.5).all() and other.nearest == keys
    assert other.tunes.tolist() == [1, 1]


def test_new_music_copies_nothing(found) -> None:
    (_, _, new), _ = found
    assert new.shares["verbatim"].tolist() == new.shares["transposed"].tolist() == [0]
    assert new.tunes.tolist() == [0] and new.longest_run == {"verbatim": 0, "transposed": 0}
