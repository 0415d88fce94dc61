"""Collation: windows of pieces to the tensors of a micro-batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from meloformer.batches.attributes import AttributeDropout, keep_length_alone
from meloformer.batches.augmentation import Augmentation
from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.batches.block_plans import build_blocks
from meloformer.batches.filling import Filling
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.share import MicroBatchSpec
from meloformer.batches.windows import Window, bar_lines
from meloformer.model.masks import BLOCK_SIZE, Layout, Rule, num_summaries
from meloformer.tokens.attributes import drop_attributes
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import KIND_OF, PAD, Kind
from meloformer.tokens.windows import cut_window

# Behind epoch, piece and bar: other draws than that of attributes and augmentation.
_OPEN_DRAW, _FILL_DRAW = 1, 2
# Of the rows with open summaries, those whose prefix says at most how long a piece is.
_UNTOLD_SHARE = 2 / 3
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
        filling: which windows are filled; none in a row with open summaries, which say what is to
            come bar by bar.
    """

    index: PieceIndex
    attributes: AttributeDropout = field(default_factory=AttributeDropout)
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    blocks_rule: Rule | None = None
    block_size: int = BLOCK_SIZE
    open_summary_rate: float = 0.0
    filling: Filling = field(default_factory=Filling)

    def __call__(self, spec: MicroBatchSpec) -> Batch:
        """Read, cut, drop attributes, label and pad."""
        open_rows = [self.open_row(spec.epoch, row) for row in spec.rows]
        rows = [
            [self.window_ids(spec.epoch, window, is_untold, seed is not None) for window in row]
            for row, (seed, is_untold) in zip(spec.rows, open_rows, strict=True)
        ]
        open_seeds = [seed for seed, _ in open_rows] if self.open_summary_rate else None
        return collate_rows(rows, spec.seq_len, self.blocks_rule, self.block_size, open_seeds)

    def open_row(self, epoch: int, row: Sequence[Window]) -> tuple[int | None, bool]:
        """Seed of a row's open summaries, and whether they alone say what the music is like.

        In most rows that have any they do, as they will when a text says it: what the prefix says,
        nobody learns to put into summaries, or to read there.
        """
        if not (row and self.open_summary_rate):
            return None, False
        # By its first window: whatever rank and micro-batch a row falls to, it draws the same.
        drawn = np.random.default_rng([self.seed, epoch, *row[0][:2], _OPEN_DRAW])
        seed, is_open = int(drawn.integers(2**62)), drawn.random() < self.open_summary_rate
        return (seed, drawn.random() < _UNTOLD_SHARE) if is_open else (None, False)

    def window_ids(
        self, epoch: int, window: Window, is_untold: bool = False, is_open: bool = False
    ) -> np.ndarray:
        """Tokens of a window as they stand in a batch of this epoch.

        Args:
            epoch: counted from 0.
            window: which bars of which piece.
            is_untold: the prefix says at most how long the piece is.
            is_open: it stands in a row with open summaries.
        """
        piece, first, last = window
        random = np.random.default_rng([self.seed, epoch, piece, first])
        ids = self.index.read(piece)
        starts = self.index.bar_starts(piece)
        if last - first < len(starts) - 1:
            ids = cut_window(ids, first, last, starts)
        # In this order: a run without augmentation draws what it always drew.
        keep = self.attributes.keep(random)
        ids = drop_attributes(ids, keep_length_alone(random) if is_untold else keep)
        ids = self.augmentation.shifted(ids, random)
        if is_open or not self.filling.rate:
            return ids
        max_tokens = bar_lines(self.index, piece).tokens(first, last)
        drawn = np.random.default_rng([self.seed, epoch, piece, first, _FILL_DRAW])
        return self.filling.filled(ids, max_tokens, drawn)


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
