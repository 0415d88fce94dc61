"""From ids as others hold them, padded rectangles, to what a MuseFormer reads."""

import numpy as np
import torch
from torch import Tensor

from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.batches.collate import collate_rows
from meloformer.bridge.summarising import row_length
from meloformer.errors import TokenError
from meloformer.tokens.vocabulary import BOS, CONTINUE, KIND_OF, PAD, VOCAB_SIZE, Kind


def batch_of(ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> Batch:
    """Label every token: piece, bar, instrument, onset and place follow from the ids alone.

    A row holds a piece, the beginning of one, or several that follow each other, each from its BOS
    or CONTINUE on: they do not read each other.

    Args:
        ids_BT: integers, PAD behind the end of a row.
        attention_mask_BT: 0 where there is padding, if it is not told by PAD.

    Returns:
        A batch on the CPU; T may be longer, up to whole blocks.

    Raises:
        TokenError: names row and place of what cannot be a row of tokens.
    """
    if ids_BT.ndim != 2 or ids_BT.dtype.is_floating_point or not ids_BT.numel():
        raise TokenError(
            f"input_ids of shape {tuple(ids_BT.shape)} and type {ids_BT.dtype}; allowed: integers "
            "(rows, tokens)"
        )
    found = ids_BT.detach().cpu().numpy().astype(np.int64)
    if attention_mask_BT is not None:
        if attention_mask_BT.shape != ids_BT.shape:
            raise TokenError(
                f"attention_mask of shape {tuple(attention_mask_BT.shape)}; allowed: that of "
                f"input_ids, {tuple(ids_BT.shape)}"
            )
        found = np.where(attention_mask_BT.cpu().numpy() != 0, found, PAD)
    rows = [_windows(row, number) for number, row in enumerate(found)]
    most_bars = max(sum(map(_num_bars, windows)) for windows in rows)
    return collate_rows(rows, row_length(ids_BT.shape[1], most_bars))


def targets_of(batch: Batch, labels_BT: Tensor) -> Tensor:
    """(B, T) the next token of the same piece, where the labels do not leave it out.

    Args:
        batch: of `batch_of`.
        labels_BT: the ids, IGNORE_INDEX where nothing is to be predicted; they stand at their own
            token, as everywhere in transformers.
    """
    targets_BT = torch.full_like(batch.targets_BT, IGNORE_INDEX)
    targets_BT[:, : labels_BT.shape[1] - 1] = labels_BT[:, 1:].to(targets_BT.device)
    return targets_BT.masked_fill(batch.targets_BT == IGNORE_INDEX, IGNORE_INDEX)


def _windows(row_T: np.ndarray, number: int) -> list[np.ndarray]:
    """The pieces of a row."""
    length = int(np.max(np.flatnonzero(row_T != PAD), initial=-1)) + 1
    ids = row_T[:length]
    outside = np.flatnonzero((ids < 0) | (ids >= VOCAB_SIZE))
    if len(outside):
        raise TokenError(
            f"input_ids, row {number}, place {outside[0]}: found id {ids[outside[0]]}; allowed: "
            f"0 to {VOCAB_SIZE - 1}"
        )
    holes = np.flatnonzero(ids == PAD)
    if len(holes):
        raise TokenError(
            f"input_ids, row {number}, place {holes[0]}: found padding before tokens; allowed: "
            "padding behind them (padding_side right), which HIDTokenizer writes"
        )
    starts = np.flatnonzero((ids == BOS) | (ids == CONTINUE))
    if length and (not len(starts) or starts[0]):
        raise TokenError(
            f"input_ids, row {number}: found id {ids[0]} at its start; allowed: BOS ({BOS}) or "
            f"CONTINUE ({CONTINUE}), with which every piece begins"
        )
    return np.split(ids, starts[1:]) if length else []


def _num_bars(ids: np.ndarray) -> int:
    return int((KIND_OF[ids] == int(Kind.BAR)).sum())
