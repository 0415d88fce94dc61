"""A split that is not there: lengths without music, to measure what a plan costs at any size."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from meloformer.midi.grid import METRE_INDEX
from meloformer.shards.maps import Recent
from meloformer.tokens.vocabulary import BOS, EOS, Kind, token_id

# About those of POP909's pieces: bars, tokens of a bar, tokens of the prefix.
_MEAN_BARS, _MEAN_BAR_TOKENS, _PREFIX = 80, 62, 9
_HEADER = (Kind.BAR, Kind.METRE, Kind.TEMPO, Kind.INSTRUMENT, Kind.ONSET)
_SHARDS_KEPT = 32


class _Shard(NamedTuple):
    """Lengths of the pieces of one shard; `first_start` is where the bar starts of each begin."""

    tokens: np.ndarray
    bars: np.ndarray
    starts: np.ndarray
    first_start: np.ndarray


class SimulatedSplit:
    """Pieces of random lengths, made shard by shard when asked for; see `PieceIndex`.

    Args:
        num_pieces: of all shards.
        pieces_per_shard: of each shard but the last.
    """

    def __init__(self, num_pieces: int, pieces_per_shard: int = 4096) -> None:
        self.num_pieces, self._pieces_per_shard = num_pieces, pieces_per_shard
        self.num_shards = -(-num_pieces // pieces_per_shard)
        self.num_tokens = num_pieces * _MEAN_BARS * _MEAN_BAR_TOKENS
        self.fingerprint = f"simulated {num_pieces} in shards of {pieces_per_shard}"
        self._shards: Recent[_Shard] = Recent(self._make, _SHARDS_KEPT)

    def _make(self, shard: int) -> _Shard:
        random = np.random.default_rng([shard, self.num_pieces])
        num_pieces = len(self.pieces_of_shard(shard))
        bars = random.poisson(_MEAN_BARS, num_pieces).clip(1).astype(np.int32)
        bar_tokens = random.poisson(_MEAN_BAR_TOKENS, bars.sum()).clip(len(_HEADER) + 1)
        edges = np.concatenate([[0], np.cumsum(bar_tokens)])
        ends = np.cumsum(bars)
        tokens = _PREFIX + edges[ends] - edges[ends - bars] + 1
        # The end of a piece is the start of the next one, and stands there for both.
        bar = np.arange(len(edges) + num_pieces - 1) - np.repeat(np.arange(num_pieces), bars + 1)
        starts = _PREFIX + edges[bar] - np.repeat(edges[ends - bars], bars + 1)
        first_start = np.concatenate([[0], np.cumsum(bars.astype(np.int64) + 1)])
        return _Shard(tokens.astype(np.int32), bars, starts.astype(np.int32), first_start)

    def order_shards(self, random: np.random.Generator) -> np.ndarray:
        """See `PieceIndex`."""
        return random.permutation(self.num_shards)

    def longest_bar(self, shard: int) -> int:
        """See `PieceIndex`."""
        return _PREFIX + 4 * _MEAN_BAR_TOKENS

    def pieces_of_shard(self, shard: int) -> range:
        """See `PieceIndex`."""
        first = shard * self._pieces_per_shard
        return range(first, min(first + self._pieces_per_shard, self.num_pieces))

    def chosen(self, shard: int, epoch: int) -> None:
        """See `PieceIndex`."""
        return None

    def lengths(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """See `PieceIndex`."""
        return self._shards[shard].tokens, self._shards[shard].bars

    def bar_starts(self, piece: int) -> np.ndarray:
        """See `PieceIndex`."""
        number, row = divmod(piece, self._pieces_per_shard)
        shard = self._shards[number]
        return shard.starts[shard.first_start[row] : shard.first_start[row + 1]]

    def key(self, piece: int) -> str:
        """See `PieceIndex`."""
        return f"{piece:024x}"

    def read(self, piece: int) -> np.ndarray:
        """Tokens with those lengths: one long chord in every bar."""
        starts = self.bar_starts(piece)
        ids = np.full(starts[-1] + 1, token_id(Kind.PITCH, 60), dtype=np.uint16)
        ids[: starts[0]] = token_id(Kind.INSTRUMENT, 1)
        ids[0], ids[-1] = BOS, EOS
        for place, kind in enumerate(_HEADER):
            index = METRE_INDEX[4, 4] if kind == Kind.METRE else 1
            ids[starts[:-1] + place] = token_id(kind, index)
        return ids

    def prefetch(self, shards: Iterable[int], *, tars: bool = True) -> None:
        """Nothing: it is all made here."""
