"""Simulated corpora: lengths without music, for all that never reads a token."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st

from meloformer.batches.windows import bar_lines


@dataclass(frozen=True)
class SimulatedIndex:
    """A split whose pieces have lengths only; see meloformer.batches.piece_index."""

    bar_tokens: list[np.ndarray]
    prefix: np.ndarray
    shard_edges: np.ndarray
    tokens: np.ndarray = field(init=False)
    bars: np.ndarray = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self):
        bars = np.array([len(tokens) for tokens in self.bar_tokens], dtype=np.int32)
        tokens = np.array([tokens.sum() for tokens in self.bar_tokens], dtype=np.int32)
        digest = hashlib.sha256(self.prefix.tobytes() + self.shard_edges.tobytes())
        digest.update(b"".join(tokens.tobytes() for tokens in self.bar_tokens))
        object.__setattr__(self, "bars", bars)
        object.__setattr__(self, "tokens", tokens + self.prefix + 1)
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    @property
    def num_pieces(self) -> int:
        return len(self.bar_tokens)

    @property
    def num_shards(self) -> int:
        return len(self.shard_edges) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.sum())

    def order_shards(self, random: np.random.Generator) -> np.ndarray:
        shards = range(self.num_shards)
        return random.permutation([shard for shard in shards if self.pieces_of_shard(shard)])

    def longest_bar(self, shard: int) -> int:
        pieces = self.pieces_of_shard(shard)
        return max((int(self.prefix[p] + self.bar_tokens[p].max()) + 3 for p in pieces), default=0)

    def pieces_of_shard(self, shard: int) -> range:
        return range(int(self.shard_edges[shard]), int(self.shard_edges[shard + 1]))

    def chosen(self, shard: int, epoch: int) -> None:
        return None

    def lengths(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        pieces = self.pieces_of_shard(shard)
        return self.tokens[pieces], self.bars[pieces]

    def bar_starts(self, piece: int) -> np.ndarray:
        edges = np.concatenate([[0], np.cumsum(self.bar_tokens[piece])])
        return (edges + self.prefix[piece]).astype(np.int32)

    def keys_of_shard(self, shard: int) -> np.ndarray:
        return np.array([self.key(p) for p in self.pieces_of_shard(shard)], dtype="S24")

    def key(self, piece: int) -> str:
        return f"{piece:08x}"

    def describe(self, piece: int) -> str:
        return f"piece {self.key(piece)}"

    def read(self, piece: int) -> np.ndarray:
        raise NotImplementedError("a simulated piece has no tokens")

    def prefetch(self, shards, *, tars=True) -> None:
        assert all(0 <= shard < self.num_shards for shard in shards)


def simulate(
    seed: int, num_pieces: int, num_shards: int, mean_bars: float, mean_bar_tokens: float
) -> SimulatedIndex:
    """Random pieces; no bar is longer than four times the mean."""
    random = np.random.default_rng(seed)
    bar_tokens = [
        np.minimum(
            random.geometric(1 / mean_bar_tokens, size=random.geometric(1 / mean_bars)),
            int(4 * mean_bar_tokens),
        )
        for _ in range(num_pieces)
    ]
    inner = np.sort(random.integers(0, num_pieces + 1, size=num_shards - 1))
    return SimulatedIndex(
        bar_tokens=bar_tokens,
        prefix=random.integers(1, 12, size=num_pieces).astype(np.int32),
        shard_edges=np.concatenate([[0], inner, [num_pieces]]),
    )


@pytest.fixture(scope="session")
def simulated():
    """`simulate`, for tests that want one corpus."""
    return simulate


@pytest.fixture(scope="session")
def corpora():
    """A hypothesis strategy of small corpora: several shards, some of them empty, long pieces."""
    return st.builds(
        simulate,
        seed=st.integers(0, 10_000),
        num_pieces=st.integers(1, 60),
        num_shards=st.integers(1, 6),
        mean_bars=st.sampled_from([1.5, 6.0, 40.0]),
        mean_bar_tokens=st.sampled_from([1.2, 4.0, 12.0]),
    )


@pytest.fixture(scope="session")
def plan_settings():
    """A hypothesis strategy of keyword arguments of PlanConfig; rows hold at least one bar."""
    return st.fixed_dictionaries(
        {
            "max_seq_len": st.sampled_from([64, 100, 256]),
            "collate": st.sampled_from(["bucket", "pack"]),
            "global_batch": st.integers(1, 7),
            "seed": st.integers(0, 1000),
            "bucket_multiple": st.sampled_from([32, 512]),
            "group_shards": st.integers(1, 4),
        }
    )


@pytest.fixture(scope="session")
def size_of():
    """Tokens and bars of a window of an index."""
    return lambda index, window: bar_lines(index, window.piece).window(*window)
