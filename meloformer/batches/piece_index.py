"""What batches ask of one split of shards, so that a plan costs memory for a few shards only."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np


class PieceIndex(Protocol):
    """Pieces numbered shard after shard; what is asked per shard comes from the manifest.

    Attributes:
        fingerprint: of all that a plan can read here.
    """

    fingerprint: str

    @property
    def num_pieces(self) -> int:
        """Pieces of all shards."""

    @property
    def num_shards(self) -> int:
        """Shards of the split."""

    @property
    def num_tokens(self) -> int:
        """Tokens that an epoch takes, full prefixes and EOS included; roughly, where it chooses."""

    def order_shards(self, random: np.random.Generator) -> np.ndarray:
        """Numbers of the shards that hold pieces, in a random order."""

    def longest_bar(self, shard: int) -> int:
        """Upper bound on the tokens of a window of a single bar of any piece of a shard."""

    def pieces_of_shard(self, shard: int) -> range:
        """Pieces that a shard holds, consecutive."""

    def chosen(self, shard: int, epoch: int) -> np.ndarray | None:
        """Rows of a shard that an epoch takes, ascending; None, all of them."""

    def lengths(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and bars of each piece of a shard, (P,) int32; full prefix and EOS included."""

    def bar_starts(self, piece: int) -> np.ndarray:
        """(num_bars + 1,) token offset of each bar, the first one the length of the prefix; the
        last entry is the end without EOS.
        """

    def keys_of_shard(self, shard: int) -> np.ndarray:
        """(P,) bytes, hashes of the notes of each piece of a shard: exact copies have one key."""

    def key(self, piece: int) -> str:
        """Key of one piece."""

    def describe(self, piece: int) -> str:
        """Where a piece lies and which file it came from, for messages."""

    def read(self, piece: int) -> np.ndarray:
        """uint16 ids of the whole piece."""

    def prefetch(self, shards: Iterable[int], *, tars: bool = True) -> None:
        """Begin to fetch the indices, and the tars, of shards that will be wanted soon."""
