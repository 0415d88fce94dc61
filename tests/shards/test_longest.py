from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meloformer.shards import longest
from meloformer.shards.bar_tokens import longest_bar, longest_bars
from meloformer.shards.longest import longest_of
from meloformer.shards.manifest import SPLITS
from meloformer.shards.reader import ShardFolder
from meloformer.shards.verify_shard import read_tar
from meloformer.tokens.windows import bar_starts


@pytest.fixture
def pieces(chorale_shards: Path) -> dict[str, tuple[int, int]]:
    """Tokens, and tokens of the longest bar, of each piece, counted from the tars."""
    return {
        plain.key: (len(plain.ids), longest_bar(bar_starts(plain.ids)))
        for tar in chorale_shards.rglob("*.tar")
        for plain in read_tar(tar)
    }


def starts_of_all(folder: ShardFolder) -> Iterator[np.ndarray]:
    for split in SPLITS:
        index = folder.split(split)
        yield from (index.bar_starts(piece) for piece in range(index.num_pieces))


def test_longest_bars_of_many_pieces_are_those_of_each(chorale_shards: Path) -> None:
    starts = list(starts_of_all(ShardFolder.open(chorale_shards)))
    found = longest_bars(np.concatenate(starts), np.array([len(own) - 1 for own in starts]))
    assert found.tolist() == [longest_bar(own) for own in starts]


def test_the_longest_are_found_among_all_pieces(
    chorale_shards: Path, pieces: dict[str, tuple[int, int]]
) -> None:
    folder = ShardFolder.open(chorale_shards)
    found = longest_of(folder)
    assert found is not None
    for place, record in enumerate((found.piece, found.bar)):
        assert record.key is not None
        assert record.piece is not None
        assert record.tokens == pieces[record.key][place] == max(p[place] for p in pieces.values())
        split, number = record.piece.split(":")
        index = folder.split(split)
        assert index.key(int(number)) == record.key
        assert index.facts(int(number))["source"] == record.source


def test_pieces_with_longer_bars_are_counted(
    chorale_shards: Path,
    pieces: dict[str, tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bars = sorted(bar for _, bar in pieces.values())
    limits = (bars[-1], bars[len(bars) // 2], bars[0] - 1)
    monkeypatch.setattr(longest, "BAR_LIMITS", limits)
    found = longest_of(ShardFolder.open(chorale_shards))
    assert found is not None
    assert found.pieces_with_longer_bars == {
        limit: sum(bar > limit for bar in bars) for limit in limits
    }
