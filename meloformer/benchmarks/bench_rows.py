"""Rows for benches: packed from shards, or made up where there are none, and said to be so."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from meloformer.batches.batch import Batch
from meloformer.batches.collate import Collator, collate_rows
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import PlanConfig, iterate_steps
from meloformer.batches.simulated import SimulatedSplit
from meloformer.batches.windows import check_bars_fit
from meloformer.errors import ConfigError
from meloformer.midi.grid import METRE_INDEX
from meloformer.model.masks import BLOCK_SIZE, Rule
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import BOS, Kind, token_id
from meloformer.training.config import newest_shards

RowKind = Literal["packed", "one_piece"]

# A piece for many instruments, about as dense as the ones that sparse attention is for.
_INSTRUMENTS, _NOTES_OF_AN_INSTRUMENT = 8, (4, 15)
_PITCHES = (36, 84)
_SIMULATED_PIECES = 1000


@dataclass(frozen=True, kw_only=True)
class BenchRows:
    """Rows of one length.

    Args:
        source: where they come from, for tables.
        seq_len: T.
        rows: token ids of the windows of each row.
    """

    source: str
    seq_len: int
    rows: tuple[tuple[np.ndarray, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Positions that hold a token."""
        return sum(len(window) for row in self.rows for window in row)

    def batch(
        self,
        blocks_rule: Rule | None,
        block_size: int | None = None,
        *,
        open_rate: float = 0.0,
    ) -> Batch:
        """The rows on the CPU.

        Args:
            blocks_rule: build block lists for this rule; None builds none.
            block_size: of the lists; the default of collation if not given.
            open_rate: share of the rows with open summaries, the first ones, rounded up; 0 leaves
                no room for any.
        """
        seeds = None
        if open_rate:
            num_open = math.ceil(open_rate * len(self.rows))
            seeds = [row if row < num_open else None for row in range(len(self.rows))]
        return collate_rows(
            self.rows, self.seq_len, blocks_rule, block_size or BLOCK_SIZE, open_seeds=seeds
        )


def find_rows(
    data: str | None, kind: RowKind, seq_len: int, num_rows: int, seed: int = 0
) -> BenchRows:
    """Rows to measure with.

    Args:
        data: shard folder; the newest of data_shards/ if not given, made up pieces if that is
            empty.
        kind: rows packed full of pieces, or one long made up piece in each.
        seq_len: T.
        num_rows: B.
        seed: of the plan, or of what is made up.

    Raises:
        ShardError: `data` is no shard folder.
        BatchError: one of its bars is longer than a row.
    """
    if kind == "packed":
        try:
            data = data or str(newest_shards())
        except ConfigError:
            pass
        else:
            return packed_rows(data, seq_len, num_rows, seed)
    rng = np.random.default_rng(seed)
    return BenchRows(
        source=f"made up: one piece for {_INSTRUMENTS} instruments in a row",
        seq_len=seq_len,
        rows=tuple((made_up_piece(seq_len, rng),) for _ in range(num_rows)),
    )


def find_pieces(data: str | None) -> tuple[PieceIndex, str]:
    """Training pieces of a shard folder, and what to call them in tables.

    Args:
        data: shard folder; the newest of data_shards/ if not given, made up pieces if that is
            empty.

    Raises:
        ShardError: `data` is no shard folder.
    """
    try:
        data = data or str(newest_shards())
    except ConfigError:
        pieces = SimulatedSplit(_SIMULATED_PIECES)
        return pieces, f"made up: {pieces.num_pieces:,} pieces for one instrument"
    index = ShardFolder.open(data).split("train")
    return index, f"{Path(data).name}: {index.num_pieces:,} pieces"


def packed_rows(data: str, seq_len: int, num_rows: int, seed: int = 0) -> BenchRows:
    """The rows of the first training step over some shards, in pack mode."""
    index = ShardFolder.open(data).split("train")
    check_bars_fit(index, seq_len)
    plan = PlanConfig(max_seq_len=seq_len, collate="pack", global_batch=num_rows, seed=seed)
    step = next(iterate_steps(index, plan))
    collator = Collator(index=index, seed=seed)
    # A folder that does not fill the batch fills it over again.
    windows = [row.windows for row in step.rows]
    windows = [windows[number % len(windows)] for number in range(num_rows)]
    return BenchRows(
        source=f"{Path(data).name}: {sum(map(len, windows))} pieces or parts of pieces",
        seq_len=seq_len,
        rows=tuple(tuple(collator.window_ids(step.epoch, w) for w in row) for row in windows),
    )


def made_up_piece(seq_len: int, rng: np.random.Generator) -> np.ndarray:
    """The first `seq_len` tokens of a piece without end, as the vocabulary orders them."""
    ids = [BOS, *(token_id(Kind.INSTRUMENT, player) for player in range(_INSTRUMENTS))]
    metre = token_id(Kind.METRE, METRE_INDEX[4, 4])
    while len(ids) < seq_len:
        ids.append(token_id(Kind.BAR, 0))
        if len(ids) == _INSTRUMENTS + 2:
            ids += [metre, token_id(Kind.TEMPO, 0)]
        for player in range(_INSTRUMENTS):
            onsets = np.sort(rng.choice(96, rng.integers(*_NOTES_OF_AN_INSTRUMENT), replace=False))
            ids.append(token_id(Kind.INSTRUMENT, player))
            for onset in onsets.tolist():
                pitch = token_id(Kind.PITCH, int(rng.integers(*_PITCHES)))
                ids += [token_id(Kind.ONSET, onset), pitch]
    return np.array(ids[:seq_len], dtype=np.uint16)
