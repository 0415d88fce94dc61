"""Random layouts for the rules, apart from the encoder and the collator."""

from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import torch

from meloformer.midi.grid import MAX_BAR_STEPS, NUM_INSTRUMENTS
from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.model.masks import Layout
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import VOCAB_SIZE


def random_row(rng: np.random.Generator, length: int, slots: int) -> list[np.ndarray]:
    """Pieces with a prefix and bars of several instruments, the rest padding."""
    piece, bar, instrument, onset, index = (np.full(length, fill) for fill in (-1, -1, -1, 0, 0))
    slot_piece, slot_bar = np.full(slots, -1), np.zeros(slots, dtype=int)
    t = s = 0
    end = length - rng.integers(1, length // 4)
    for number in range(rng.integers(1, 4)):
        for position in range(rng.integers(1, 9)):
            if t == end:
                break
            piece[t], index[t], t = number, position, t + 1
        for measure in range(rng.integers(1, 12)):
            if t == end or s == slots:
                break
            slot_piece[s], slot_bar[s], s = number, measure, s + 1
            chosen = np.sort(rng.choice(np.arange(1, 8), rng.integers(0, 4), replace=False))
            lengths = [rng.integers(1, 4), *rng.integers(3, length // 8, len(chosen))]
            position = 0
            for player, count in zip([0, *chosen], lengths, strict=True):
                for _ in range(count):
                    if t == end:
                        break
                    piece[t], bar[t], instrument[t], index[t] = number, measure, player, position
                    onset[t] = rng.integers(0, 96) if player else 0
                    t, position = t + 1, position + 1
    fields = (piece, bar, instrument, onset, index, slot_piece, slot_bar)
    return [field.astype(np.int32) for field in fields]


def random_layout(seed: int, rows: int = 2, length: int = 512, slots: int = 128) -> Layout:
    """Labels of some rows, as numpy arrays."""
    rng = np.random.default_rng(seed)
    made = [random_row(rng, length, slots) for _ in range(rows)]
    piece, bar, instrument, onset, index, slot_piece, slot_bar = map(
        np.stack, zip(*made, strict=True)
    )
    return Layout(
        piece_BT=piece,
        bar_BT=bar,
        instrument_BT=instrument,
        onset_BT=onset,
        index_BT=index,
        piece_BS=slot_piece,
        bar_BS=slot_bar,
    )


def with_open(layout: Layout, seed: int, share: float = 0.8) -> Layout:
    """The same with an open summary at some bars of all rows but the last, which has none."""
    chosen = np.random.default_rng(seed).random(layout.piece_BS.shape) < share
    chosen[-1] = False
    return replace(layout, open_BS=np.where(chosen, layout.piece_BS, -1).astype(np.int32))


def as_torch(value: Any) -> Any:
    """Copy a dataclass of arrays, nested or not, to tensors."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, tuple):
        return tuple(map(as_torch, value))
    if not is_dataclass(value):
        return value
    return type(value)(**{name: as_torch(field) for name, field in vars(value).items()})


def tiny_config(**changes: Any) -> MuseFormerConfig:
    """Settings of the smallest size, some of them changed."""
    settings = {
        **vars(SIZES["tiny"]),
        "vocab_size": VOCAB_SIZE,
        "num_onsets": MAX_BAR_STEPS,
        "num_instruments": NUM_INSTRUMENTS,
    }
    return MuseFormerConfig(**{**settings, **changes})


def layout_of(ids: np.ndarray, slots: int = 128) -> Layout:
    """One row that holds one sequence and no padding, as tensors."""
    labels = token_labels(ids)
    num_bars = int(labels.bar.max()) + 1
    slot_piece, slot_bar = np.full(slots, -1), np.zeros(slots)
    slot_piece[:num_bars], slot_bar[:num_bars] = 0, np.arange(num_bars)
    fields = {
        "piece_BT": np.zeros(len(ids)),
        "bar_BT": labels.bar,
        "instrument_BT": labels.instrument,
        "onset_BT": labels.onset,
        "index_BT": labels.index,
        "piece_BS": slot_piece,
        "bar_BS": slot_bar,
    }
    return Layout(**{k: torch.from_numpy(v.astype(np.int32))[None] for k, v in fields.items()})
