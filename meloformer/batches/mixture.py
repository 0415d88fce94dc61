"""Mixtures: several splits as one, each with the number of times that an epoch takes it."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import PlanConfig
from meloformer.errors import ConfigError

# Changes with the order that the same parts, weights and seed give: a cursor of another is void.
_ORDER_FORMAT = 2
# Each turn of a shard reads its index anew, and fetches it where it is remote.
_MAX_SLICES = 16


@dataclass(frozen=True)
class _Copy:
    """A slice of a pass over a split: each shard has one turn in it, with some of its pieces.

    Args:
        index: the split.
        left_out: numbers of pieces that no epoch takes, ascending.
        number: of the pass, through all splits.
        share: of the pieces, that the pass takes in an epoch.
        begin: share of the pieces that earlier slices of the pass take.
        end: the same, with this slice.
        place: 0 to 1, where its shards stand between those of other slices of the split.
    """

    index: PieceIndex
    left_out: np.ndarray
    number: int
    share: float
    begin: float
    end: float
    place: float

    @property
    def is_whole(self) -> bool:
        """Whether every epoch takes every piece here."""
        return self.end - self.begin == 1.0


class Mixture:
    """Splits side by side; see `PieceIndex`.

    A weight of 2 takes each piece twice an epoch, under two numbers, so that what is random about
    its windows differs. A weight of .5 takes half of the pieces, and the other half in the next
    epoch. Shards of each split are spread evenly over an epoch. Of a split with fewer shards than
    an epoch has groups of shards, a pass is cut into slices, so that its pieces do not come in one
    burst: each shard has a turn in every slice, with other pieces.

    Args:
        parts: the splits.
        weights: passes over each split in an epoch, in the order of the splits.
        seed: of the choice of pieces where a weight is no whole number.
        left_out: numbers of the pieces of each split that no epoch takes, ascending.
        group_shards: of the plan.

    Raises:
        ConfigError: not one weight for each split, or one that is not above 0.
    """

    def __init__(
        self,
        parts: Sequence[PieceIndex],
        weights: Sequence[float],
        seed: int,
        left_out: Sequence[np.ndarray] = (),
        *,
        group_shards: int = PlanConfig.group_shards,
    ) -> None:
        check_weights(len(parts), weights)
        left_out = left_out or [np.zeros(0, np.int64) for _ in parts]
        shares = [[1.0] * int(w) + ([w % 1] if w % 1 else []) for w in weights]
        turns = [len(own) * part.num_shards for own, part in zip(shares, parts, strict=True)]
        self._copies: list[_Copy] = []
        number = 0
        for part, out, own, own_turns in zip(parts, left_out, shares, turns, strict=True):
            num_slices = -(-sum(turns) // (group_shards * max(own_turns, 1)))
            num_slices = min(max(num_slices, 1), _MAX_SLICES)
            for slot, share in enumerate(own):
                for k in range(num_slices):
                    begin, end = k * share / num_slices, (k + 1) * share / num_slices
                    place = (k + slot / len(own)) / num_slices
                    self._copies.append(_Copy(part, out, number, share, begin, end, place))
                number += 1
        self._seed = seed
        self._first_piece = [0, *accumulate(copy.index.num_pieces for copy in self._copies)]
        self._first_shard = [0, *accumulate(copy.index.num_shards for copy in self._copies)]
        described = [[part.fingerprint, w] for part, w in zip(parts, weights, strict=True)]
        text = json.dumps([_ORDER_FORMAT, seed, group_shards, described])
        digest = hashlib.sha256(text.encode())
        for number, out in enumerate(left_out):
            if len(out):
                digest.update(np.array([number, *out], "<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    @property
    def num_pieces(self) -> int:
        """Numbers of pieces; a piece has one in each slice of each pass over its split."""
        return self._first_piece[-1]

    @property
    def num_shards(self) -> int:
        """Turns of shards: each has one in each slice of each pass over its split."""
        return self._first_shard[-1]

    @property
    def num_tokens(self) -> int:
        """About what an epoch takes."""
        return round(
            sum(
                copy.index.num_tokens
                * (copy.end - copy.begin)
                * (1 - len(copy.left_out) / max(copy.index.num_pieces, 1))
                for copy in self._copies
            )
        )

    def order_shards(self, random: np.random.Generator) -> np.ndarray:
        """Shards of each slice shuffled, and the slices spread evenly over each other."""
        shards, places = [], []
        offset = 0.0
        for copy, first in zip(self._copies, self._first_shard, strict=False):
            own = copy.index.order_shards(random)
            shards.append(own.astype(np.int64) + first)
            if copy.place == 0.0:  # the first of its split: all others keep their distance to it
                offset = random.random()
            place = (np.arange(len(own)) + offset + copy.place) / max(len(own), 1)
            places.append(place % 1.0)
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(shards)[order]

    def longest_bar(self, shard: int) -> int:
        """See `PieceIndex`."""
        number, own = self._shard(shard)
        return self._copies[number].index.longest_bar(own)

    def pieces_of_shard(self, shard: int) -> range:
        """Pieces that a shard holds, in this pass over it."""
        number, own = self._shard(shard)
        pieces, first = self._copies[number].index.pieces_of_shard(own), self._first_piece[number]
        return range(first + pieces.start, first + pieces.stop)

    def chosen(self, shard: int, epoch: int) -> np.ndarray | None:
        """Rows of a shard that an epoch takes: another share each epoch, until all had their turn.

        Each piece has a place on a circle; an epoch takes an arc as long as the share, and the next
        epoch goes on where it ended.
        """
        number, own = self._shard(shard)
        copy = self._copies[number]
        pieces = copy.index.pieces_of_shard(own)
        if copy.is_whole:
            rows = copy.index.chosen(own, epoch)
        else:
            random = np.random.default_rng([self._seed, copy.number, own])
            place = (random.permutation(len(pieces)) + random.random()) / len(pieces)
            place = (place + epoch * copy.share) % 1.0
            rows = np.flatnonzero((place >= copy.begin) & (place < copy.end))
        first, end = np.searchsorted(copy.left_out, [pieces.start, pieces.stop])
        if first == end:
            return rows
        rows = np.arange(len(pieces)) if rows is None else rows
        return np.setdiff1d(rows, copy.left_out[first:end] - pieces.start, assume_unique=True)

    def lengths(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """See `PieceIndex`."""
        number, own = self._shard(shard)
        return self._copies[number].index.lengths(own)

    def bar_starts(self, piece: int) -> np.ndarray:
        """See `PieceIndex`."""
        index, own = self._piece(piece)
        return index.bar_starts(own)

    def keys_of_shard(self, shard: int) -> np.ndarray:
        """See `PieceIndex`."""
        number, own = self._shard(shard)
        return self._copies[number].index.keys_of_shard(own)

    def key(self, piece: int) -> str:
        """See `PieceIndex`."""
        index, own = self._piece(piece)
        return index.key(own)

    def describe(self, piece: int) -> str:
        """See `PieceIndex`."""
        index, own = self._piece(piece)
        return index.describe(own)

    def read(self, piece: int) -> np.ndarray:
        """See `PieceIndex`."""
        index, own = self._piece(piece)
        return index.read(own)

    def prefetch(self, shards: Iterable[int], *, tars: bool = True) -> None:
        """See `PieceIndex`."""
        for shard in shards:
            number, own = self._shard(shard)
            self._copies[number].index.prefetch([own], tars=tars)

    def _shard(self, shard: int) -> tuple[int, int]:
        """The pass that a shard belongs to, and its number there."""
        number = bisect_right(self._first_shard, shard) - 1
        return number, shard - self._first_shard[number]

    def _piece(self, piece: int) -> tuple[PieceIndex, int]:
        """The split that a piece belongs to, and its number there."""
        if not 0 <= piece < self.num_pieces:
            raise IndexError(f"piece {piece} of {self.num_pieces}")
        number = bisect_right(self._first_piece, piece) - 1
        return self._copies[number].index, piece - self._first_piece[number]


def check_weights(num_parts: int, weights: Sequence[float]) -> None:
    """Refuse weights that do not say how often each split is taken.

    Raises:
        ConfigError: not one weight for each split, or one that is not above 0.
    """
    if len(weights) != num_parts:
        raise ConfigError(
            f"--data_weights: found {len(weights)} weights for {num_parts} folders of --data; "
            "allowed: one for each, or none"
        )
    for weight in weights:
        if not 0.0 < weight < float("inf"):
            raise ConfigError(
                f"--data_weights {weight:g}: allowed: more than 0 (passes over a folder in an "
                "epoch); leave a folder out of --data that is not wanted"
            )
