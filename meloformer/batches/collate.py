"""Collation: windows of pieces to the tensors of a micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from meloformer.batches.attributes import AttributeDropout
from meloformer.batches.augmentation import Augmentation
from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.batches.block_plans import build_blocks
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.share import MicroBatchSpec
from meloformer.batches.windows import Window
from meloformer.model.masks import BLOCK_SIZE, Layout, Rule, num_summaries
from meloformer.tokens.attributes import drop_attributes
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import KIND_OF, PAD, Kind
from meloformer.tokens.windows import cut_window

# Behind epoch, piece and bar: another draw than that of attributes and augmentation.
_OPEN_DRAW = 1
# What a label says where a row is over.
_PADDING = {"onset_BT": 0, "index_BT": 0, "bar_BS": 0}


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Makes batches; what is random follows from (seed, epoch, piece, first bar) alone.

    Args:
        index: the pieces; it travels into data workers.
        attributes: how prefixes lose statements.
        seed: of dropout and augmentation.
        augmentation: how far a window may be shifted.
        blocks_rule: build block lists for this rule; None builds none.
        block_size: tokens along each side of a block.
        open_summary_rate: share of rows with open summaries, see model/injection.py.
    """

    index: PieceIndex
    attributes: AttributeDropout = field(default_factory=AttributeDropout)
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    blocks_rule: Rule | None = None
    block_size: int = BLOCK_SIZE
    open_summary_rate: float = 0.0

    def __call__(self, spec: MicroBatchSpec) -> Batch:
        """Read, cut, drop attributes, label and pad."""
        rows = [[self.window_ids(spec.epoch, window) for window in row] for row in spec.rows]
        open_seeds = None
        if self.open_summary_rate:
            open_seeds = [self.open_seed(spec.epoch, row) for row in spec.rows]
        return collate_rows(rows, spec.seq_len, self.blocks_rule, self.block_size, open_seeds)

    def open_seed(self, epoch: int, row: Sequence[Window]) -> int | None:
        """Seed of the noise of a row's open summaries; None where it has none."""
        if not row:
            return None
        # By its first window: whatever rank and micro-batch a row falls to, it draws the same.
        drawn = np.random.default_rng([self.seed, epoch, *row[0][:2], _OPEN_DRAW])
        return int(drawn.integers(2**62)) if drawn.random() < self.open_summary_rate else None

    def window_ids(self, epoch: int, window: Window) -> np.ndarray:
        """Tokens of a window as they stand in a batch of this epoch."""
        piece, first, last = window
        random = np.random.default_rng([self.seed, epoch, piece, first])
        ids = self.index.read(piece)
        starts = self.index.bar_starts(piece)
        if last - first < len(starts) - 1:
            ids = cut_window(ids, first, last, starts)
        # In this order: a run without augmentation draws what it always drew.
        ids = drop_attributes(ids, self.attributes.keep(random))
        return self.augmentation.shifted(ids, random)


def collate_rows(
    rows: Sequence[Sequence[np.ndarray]],
    seq_len: int,
    blocks_rule: Rule | None = None,
    block_size: int = BLOCK_SIZE,
    open_seeds: Sequence[int | None] | None = None,
) -> Batch:
    """Lay sequences side by side in rows; a row without sequences is all padding.

    Args:
        rows: token ids of the windows of each row; together at most `seq_len` tokens and
            `num_summaries(seq_len)` bars.
        seq_len: T.
        blocks_rule: build block lists for this rule; None builds none.
        block_size: tokens along each side of a block.
        open_seeds: a seed for each row whose bars have open summaries, None for the others; None
            altogether lays out a batch that cannot have any.
    """
    slots = num_summaries(seq_len)
    ids = np.full((len(rows), seq_len), PAD, dtype=np.int64)
    targets = np.full((len(rows), seq_len), IGNORE_INDEX, dtype=np.int64)
    labels = {
        name: np.full(
            (len(rows), slots if name.endswith("S") else seq_len),
            _PADDING.get(name, -1),
            dtype=np.int32,
        )
        for name in (item.name for item in fields(Layout) if item.name != "open_BS")
    }
    for row, windows in enumerate(rows):
        start = slot = 0
        for piece, window in enumerate(windows):
            found = token_labels(window)
            end, num_bars = start + len(window), int(found.bar[-1]) + 1
            assert end <= seq_len and slot + num_bars <= slots, "the plan overfilled a row"
            ids[row, start:end] = window
            targets[row, start : end - 1] = window[1:]
            labels["piece_BT"][row, start:end] = piece
            labels["bar_BT"][row, start:end] = found.bar
            labels["instrument_BT"][row, start:end] = found.instrument
            labels["onset_BT"][row, start:end] = found.onset
            labels["index_BT"][row, start:end] = found.index
            labels["piece_BS"][row, slot : slot + num_bars] = piece
            labels["bar_BS"][row, slot : slot + num_bars] = np.arange(num_bars)
            start, slot = end, slot + num_bars
    if open_seeds is not None:
        is_open_B = np.array([seed is not None for seed in open_seeds])
        labels["open_BS"] = np.where(is_open_B[:, None], labels["piece_BS"], np.int32(-1))
    layout = Layout(**labels)
    blocks = None
    if blocks_rule is not None:
        blocks = as_tensors(build_blocks(layout, blocks_rule, block_size))
    is_target = targets != IGNORE_INDEX
    return Batch(
        ids_BT=torch.from_numpy(ids),
        targets_BT=torch.from_numpy(targets),
        layout=as_tensors(layout),
        blocks=blocks,
        num_rows=sum(bool(windows) for windows in rows),
        num_targets=int(is_target.sum()),
        num_notes=int((KIND_OF[targets[is_target]] == Kind.PITCH).sum()),
        open_seeds=tuple(open_seeds or ()),
    )


def as_tensors(value: Any) -> Any:
    """The same nested dataclasses and tuples, arrays as tensors that share their memory."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, tuple):
        return tuple(map(as_tensors, value))
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{item.name: as_tensors(getattr(value, item.name)) for item in fields(value)}
        )
    return value
