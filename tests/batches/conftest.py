"""Simulated corpora: lengths without music, for all that never reads a token."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import strategies as st

from meloformer.batches.windows import BarLines


@dataclass(frozen=True)
class SimulatedIndex:
    """A split whose pieces have lengths only; see meloformer.batches.windows.PieceIndex."""

    bar_tokens: list[np.ndarray]
    prefix_length: np.ndarray
    shard_edges: np.ndarray
    num_tokens: np.ndarray = field(init=False)
    num_bars: np.ndarray = field(init=False)

    def __post_init__(self):
        bars = np.array([len(tokens) for tokens in self.bar_tokens], dtype=np.int32)
        tokens = np.array([tokens.sum() for tokens in self.bar_tokens], dtype=np.int32)
        object.__setattr__(self, "num_bars", bars)
        object.__setattr__(self, "num_tokens", tokens + self.prefix_length + 1)

    @property
    def num_shards(self) -> int:
        return len(self.shard_edges) - 1

    def bar_starts(self, piece: int) -> np.ndarray:
        edges = np.concatenate([[0], np.cumsum(self.bar_tokens[piece])])
        return (edges + self.prefix_length[piece]).astype(np.int32)

    def pieces_of_shard(self, shard: int) -> range:
        return range(int(self.shard_edges[shard]), int(self.shard_edges[shard + 1]))

    def key(self, piece: int) -> str:
        return f"{piece:08x}"

    def read(self, piece: int) -> np.ndarray:
        raise NotImplementedError("a simulated piece has no tokens")


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
        prefix_length=random.integers(1, 12, size=num_pieces).astype(np.int32),
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
    return lambda index, window: BarLines.of(index, window.piece).window(*window)
