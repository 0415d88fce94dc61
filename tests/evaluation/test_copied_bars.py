from dataclasses import replace

import numpy as np
import pytest

from meloformer.evaluation.copied_bars import MIN_NOTES, CopySearch, bar_contents
from meloformer.midi.quantised import QuantisedPiece
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import decode
from meloformer.tokens.transpose import transpose


@pytest.fixture(scope="module")
def pieces(chorale_shards) -> list[np.ndarray]:
    index = ShardFolder.open(chorale_shards).split("train")
    return [index.read(piece) for piece in range(6)]


def search(new: list[QuantisedPiece], old: list[QuantisedPiece], likeness):
    found = CopySearch([bar_contents(music, likeness) for music in new])
    found.look_into(bar_contents(music, likeness) for music in old)
    return found.count(slice(None))


@pytest.mark.parametrize("likeness", ["verbatim", "transposed"])
def test_a_copied_piece_is_found_bar_by_bar_in_one_run(pieces, likeness) -> None:
    music = decode(pieces[0])
    notes_of_bar = np.bincount(music.bar, minlength=music.num_bars)
    assert (notes_of_bar >= MIN_NOTES).all(), "the piece has a bar that tells nothing"
    found = search([music], [decode(ids) for ids in pieces], likeness)
    assert found.share == 1 and found.longest_run == music.num_bars
    assert found.num_bars.tolist() == found.num_found.tolist() == [music.num_bars]


def test_another_key_is_a_copy_only_where_keys_do_not_count(pieces) -> None:
    higher = decode(transpose(pieces[0], 1))
    assert search([higher], [decode(pieces[0])], "verbatim").num_found.tolist() == [0]
    assert search([higher], [decode(pieces[0])], "transposed").share == 1


def test_loudness_and_tempo_make_no_other_bar_but_one_note_does(pieces) -> None:
    music = decode(pieces[0])
    louder = replace(music, velocity=music.velocity[::-1].copy(), bar_tempo=music.bar_tempo + 1)
    assert search([louder], [music], "verbatim").share == 1
    pitch = music.pitch.copy()
    pitch[music.num_notes // 2] += 1
    found = search([replace(music, pitch=pitch)], [music], "verbatim")
    assert found.num_bars[0] - found.num_found[0] == 1
    assert found.longest_run < music.num_bars - 1


def test_runs_are_bars_in_a_row_in_both_pieces(pieces) -> None:
    old = [b"a", b"b", b"c", None, b"d", b"e"]
    for new, longest in (
        ([b"x", b"b", b"c", b"d"], 2),  # c and d stand in a row in the new one alone
        ([b"c", b"b", b"a"], 1),
        ([b"d", b"e", b"d", b"e"], 2),
        ([b"a", b"b", b"c", None, b"d"], 3),  # nothing is known of the bar between
        ([None, b"x"], 0),
    ):
        found = CopySearch([new])
        found.look_into([[b"b"], old])
        assert found.count(slice(1)).longest_run == longest, new


def test_bars_of_few_notes_are_not_counted_and_spread_is_that_of_pieces() -> None:
    found = CopySearch([[b"a", b"b", None], [b"a", b"a"], [b"x", b"y"], [None]])
    found.look_into([[b"a"]])
    count = found.count(slice(None))
    assert count.num_bars.tolist() == [2, 2, 2, 0] and count.num_found.tolist() == [1, 2, 0, 0]
    assert count.share == 0.5
    assert count.spread == pytest.approx(np.std([0.5, 1.0, 0.0], ddof=1))
    assert found.count(slice(1, 2)).share == 1 and found.count(slice(1, 2)).spread == 0
