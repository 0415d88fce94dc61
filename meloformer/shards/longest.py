"""The longest piece and bar of a folder, and how many pieces no short row could take."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from meloformer.shards.bar_tokens import longest_bars
from meloformer.shards.manifest import SPLITS, ShardEntry
from meloformer.shards.maps import MappedIndex
from meloformer.shards.reader import ShardFolder
from meloformer.shards.storage import LocalFolder

# Row lengths (--max_seq_len) that people try; training stops at a longer bar.
BAR_LIMITS = (1024, 2048, 4096)


@dataclass(frozen=True)
class Longest:
    """Where the longest of something stands.

    Args:
        tokens: that it takes.
        shard: file that holds it.
        piece: `split:number`; None where the indices were not read.
        key: of the piece, likewise.
        source: of the piece, likewise.
    """

    tokens: int
    shard: str
    piece: str | None = None
    key: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class LongestOfFolder:
    """What decides how long the rows of a training run have to be.

    Args:
        piece: the longest one.
        bar: the longest one, with the prefix that a window of it takes.
        pieces_with_longer_bars: by number of tokens; None where the indices were not read.
    """

    piece: Longest
    bar: Longest
    pieces_with_longer_bars: dict[int, int] | None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


def longest_of(folder: ShardFolder) -> LongestOfFolder | None:
    """Find the longest piece and bar; None where there is no piece.

    Of a folder behind a URL only the manifest is asked, which names their shards.

    Args:
        folder: whose indices are read, of few shards where bars are short.

    Raises:
        ShardError: an index is damaged.
    """
    if not folder.manifest.num_pieces:
        return None
    is_local = isinstance(folder.storage, LocalFolder)
    piece, bar = (_longest(folder, what, look=is_local) for what in ("piece", "bar"))
    longer = None
    if is_local:
        longer = dict.fromkeys(BAR_LIMITS, 0)
        # What the manifest says of a shard leaves out most of them.
        for _, _, entry in _shards(folder):
            if entry.longest_bar > min(BAR_LIMITS):
                tokens = _tokens(folder, entry, "bar")
                for limit in longer:
                    longer[limit] += int(np.count_nonzero(tokens > limit))
    return LongestOfFolder(piece, bar, longer)


def _longest(folder: ShardFolder, what: str, *, look: bool) -> Longest:
    split, first, entry = max(
        _shards(folder), key=lambda shard: getattr(shard[2], f"longest_{what}")
    )
    found = Longest(getattr(entry, f"longest_{what}"), entry.file)
    if not look:
        return found
    number = first + int(_tokens(folder, entry, what).argmax())
    index = folder.split(split)
    return Longest(
        found.tokens,
        found.shard,
        f"{split}:{number}",
        index.key(number),
        str(index.facts(number).get("source")),
    )


def _tokens(folder: ShardFolder, entry: ShardEntry, what: str) -> np.ndarray:
    """(P,) tokens of the pieces of a shard, or of the longest bar of each."""
    arrays = MappedIndex(folder.storage, entry).arrays
    if what == "piece":
        return arrays.num_tokens
    return longest_bars(arrays.bar_starts, arrays.num_bars)


def _shards(folder: ShardFolder) -> Iterator[tuple[str, int, ShardEntry]]:
    """Split, number of its first piece there, and entry of each shard."""
    for split in SPLITS:
        first = 0
        for entry in folder.manifest.splits[split]:
            yield split, first, entry
            first += entry.pieces
