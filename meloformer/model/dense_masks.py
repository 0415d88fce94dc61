"""Rules as dense masks: every pair of a batch tested by the one rule of `masks`."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from meloformer.model import masks
from meloformer.model.masks import HeadGroup, Label, Layout


def labels_of(layout: Layout) -> tuple[Label, Label]:
    """Labels of tokens (B, T) and of summaries (B, S)."""
    piece_BT, piece_BS = layout.piece_BT, layout.piece_BS
    time_BT = torch.arange(piece_BT.shape[1], device=piece_BT.device, dtype=torch.int32)
    slot_BS = torch.arange(piece_BS.shape[1], device=piece_BS.device, dtype=torch.int32)
    absent_BS = torch.full_like(piece_BS, -1)
    tokens = Label(
        piece_BT,
        layout.bar_BT,
        layout.instrument_BT,
        layout.index_BT,
        time_BT.expand_as(piece_BT),
        torch.zeros_like(piece_BT, dtype=torch.bool),
    )
    summaries = Label(
        piece_BS,
        layout.bar_BS,
        absent_BS,
        absent_BS,
        slot_BS.expand_as(piece_BS),
        torch.ones_like(piece_BS, dtype=torch.bool),
    )
    return tokens, summaries


def summarize_mask(layout: Layout) -> Tensor:
    """(B, 1, S, S + T) bool: what each summary reads, summaries first."""
    tokens, summaries = labels_of(layout)
    return _test(masks.summary_reads, summaries, _concatenate(summaries, tokens))


def update_mask(layout: Layout, group: HeadGroup, order_BT: Tensor | None) -> Tensor:
    """(B, 1, T, S + T) bool: what each token reads, summaries first.

    Args:
        layout: torch labels.
        group: the rule.
        order_BT: time of the token stored at each place, of queries and keys alike; None is time.
    """
    _, summaries = labels_of(layout)
    queries = _stored(layout, order_BT)
    reads = functools.partial(masks.token_reads, group)
    return _test(reads, queries, _concatenate(summaries, queries))


def with_open(mask_BTN: Tensor, layout: Layout, order_BT: Tensor | None) -> Tensor:
    """(B, 1, T, S + S + T) bool: an `update_mask` with open summaries behind the summaries."""
    num_slots = layout.piece_BS.shape[1]
    of_open = _test(masks.token_reads_open, _stored(layout, order_BT), _open_labels(layout))
    return torch.cat([mask_BTN[..., :num_slots], of_open, mask_BTN[..., num_slots:]], dim=-1)


def open_mask(layout: Layout) -> Tensor:
    """(B, 1, S, S) bool: what each open summary reads; dense on every device, pairs are few."""
    labels = _open_labels(layout)
    return _test(masks.open_reads_open, labels, labels)


def instrument_order(layout: Layout) -> Tensor:
    """(B, T) int64: piece by piece, instrument by instrument, in time; padding last."""
    piece_BT = layout.piece_BT.long()
    last = piece_BT.amax(dim=1, keepdim=True) + 1
    piece_BT = torch.where(piece_BT < 0, last, piece_BT)
    # Instruments are small non-negative numbers once the prefix (-1) is shifted to 0.
    instrument_BT = layout.instrument_BT.long() + 1
    key_BT = piece_BT * (instrument_BT.max() + 1) + instrument_BT
    return torch.argsort(key_BT, dim=1, stable=True)


def _stored(layout: Layout, order_BT: Tensor | None) -> Label:
    tokens, _ = labels_of(layout)
    if order_BT is None:
        return tokens
    return Label(*(torch.gather(field, 1, order_BT) for field in tokens))


def _open_labels(layout: Layout) -> Label:
    _, summaries = labels_of(layout)
    return summaries._replace(piece=layout.open_BS)


def _concatenate(first: Label, second: Label) -> Label:
    return Label(*(torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)))


def _test(reads: Callable[[Label, Label], Tensor], q: Label, k: Label) -> Tensor:
    # Pairs are many and labels small: halving their width nearly halves the time.
    longest = max(q.piece.shape[1], k.piece.shape[1])
    narrow = longest <= torch.iinfo(torch.int16).max
    q, k = (Label(*(_narrowed(field, narrow) for field in label)) for label in (q, k))
    rows = Label(*(field[:, None, :, None] for field in q))
    columns = Label(*(field[:, None, None, :] for field in k))
    return reads(rows, columns)


def _narrowed(field: Tensor, narrow: bool) -> Tensor:
    return field.to(torch.int16) if narrow and field.dtype != torch.bool else field
