"""A split that is not there: lengths without music, to measure what a plan costs at any size."""

from collections.abc import Iterable

import numpy as np

from meloformer.midi.grid import METRE_INDEX
from meloformer.tokens.vocabulary import BOS, EOS, Kind, token_id

# About those of POP909's pieces: bars, tokens of a bar, tokens of the prefix.
_MEAN_BARS, _MEAN_BAR_TOKENS, _PREFIX = 80, 62, 9
_HEADER = (Kind.BAR, Kind.METRE, Kind.TEMPO, Kind.INSTRUMENT, Kind.ONSET)


class SimulatedSplit:
    """Pieces of random lengths, the same ones in every shard; see `PieceIndex`.

    Args:
        num_pieces: of all shards.
        pieces_per_shard: of each shard but the last.
    """

    def __init__(self, num_pieces: int, pieces_per_shard: int = 4096) -> None:
        self.num_pieces, self._pieces_per_shard = num_pieces, pieces_per_shard
        self.num_shards = -(-num_pieces // pieces_per_shard)
        self.fingerprint = f"simulated {num_pieces} in shards of {pieces_per_shard}"
        random = np.random.default_rng(num_pieces)
        bars = random.poisson(_MEAN_BARS, min(num_pieces, pieces_per_shard)).clip(1)
        bar_tokens = random.poisson(_MEAN_BAR_TOKENS, bars.sum()).clip(len(_HEADER) + 1)
        ends = np.cumsum(bars)
        self._starts = [
            np.cumsum([_PREFIX, *bar_tokens[first:end]], dtype=np.int32)
            for first, end in zip((ends - bars).tolist(), ends.tolist(), strict=True)
        ]
        self._bars = bars.astype(np.int32)
        self._tokens = np.array([starts[-1] + 1 for starts in self._starts], dtype=np.int32)
        self._longest_bar = _PREFIX + int(bar_tokens.max()) + 3
        self.num_tokens = round(num_pieces * float(self._tokens.mean()))

    def order_shards(self, random: np.random.Generator) -> np.ndarray:
        """See `PieceIndex`."""
        return random.permutation(self.num_shards)

    def longest_bar(self, shard: int) -> int:
        """See `PieceIndex`."""
        return self._longest_bar

    def pieces_of_shard(self, shard: int) -> range:
        """See `PieceIndex`."""
        first = shard * self._pieces_per_shard
        return range(first, min(first + self._pieces_per_shard, self.num_pieces))

    def chosen(self, shard: int, epoch: int) -> None:
        """See `PieceIndex`."""
        return None

    def lengths(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """See `PieceIndex`."""
        size = len(self.pieces_of_shard(shard))
        return self._tokens[:size], self._bars[:size]

    def bar_starts(self, piece: int) -> np.ndarray:
        """See `PieceIndex`."""
        return self._starts[piece % self._pieces_per_shard]

    def keys_of_shard(self, shard: int) -> np.ndarray:
        """See `PieceIndex`."""
        return np.array([self.key(piece) for piece in self.pieces_of_shard(shard)], dtype="S24")

    def key(self, piece: int) -> str:
        """See `PieceIndex`."""
        return f"{piece:024x}"

    def describe(self, piece: int) -> str:
        """See `PieceIndex`."""
        return f"simulated piece {self.key(piece)}"

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
