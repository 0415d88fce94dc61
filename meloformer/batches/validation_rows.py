"""The rows of a validation: the same ones every time, and few of them where a split is large."""

import numpy as np

from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import PlanConfig
from meloformer.batches.rows import Row, Rows, best_fit
from meloformer.batches.windows import Windows, cut_long_pieces, whole_pieces
from meloformer.errors import BatchError

# More is looked at than is taken, so that what is taken is a fair share of long and short rows.
_MARGIN = 2
# A shard holds its pieces in the order of a hash, so a few shards stand for all.
_NUM_SHARDS = 16


def validation_rows(index: PieceIndex, config: PlanConfig, max_rows: int | None) -> list[Row]:
    """Rows of whole pieces, or of pieces cut as in bucket mode.

    Args:
        index: the pieces.
        config: row lengths.
        max_rows: that many rows only, spread evenly; of a large split only as many pieces are
            looked at as these rows take.

    Raises:
        BatchError: no pieces, or a bar longer than a row.
    """
    if not index.num_pieces:
        raise BatchError(
            "a validation split without pieces, allowed 1 or more; build the shards with a "
            "larger --valid_share, or from more files"
        )
    max_tokens, max_bars = config.max_seq_len, config.max_bars
    windows = cut_long_pieces(index, _spread(index, config, max_rows), max_tokens, max_bars)
    rows = Rows.of(*best_fit(windows, max_tokens, max_bars), config.row_lengths)
    if max_rows is None or max_rows >= len(rows):
        return [rows[row] for row in range(len(rows))]
    return [rows[row * len(rows) // max_rows] for row in range(max_rows)]


def _spread(index: PieceIndex, config: PlanConfig, max_rows: int | None) -> Windows:
    """All pieces, or about as many as twice the rows take, spread over shards and inside them."""
    shards = [n for n in range(index.num_shards) if index.pieces_of_shard(n)]
    mean_tokens = index.num_tokens / index.num_pieces
    wanted = index.num_pieces
    if max_rows is not None:
        wanted = min(wanted, int(_MARGIN * max_rows * config.max_seq_len / mean_tokens) + 1)
    if wanted == index.num_pieces:
        return Windows.joined(*(whole_pieces(index, shard) for shard in shards))
    mean_pieces = index.num_pieces / len(shards)
    num_shards = min(len(shards), max(_NUM_SHARDS, int(_MARGIN * wanted / mean_pieces)))
    parts = []
    for number in range(num_shards):
        shard = shards[number * len(shards) // num_shards]
        size = len(index.pieces_of_shard(shard))
        of_shard = min(size, wanted // num_shards + 1)
        parts.append(whole_pieces(index, shard, np.arange(of_shard) * size // of_shard))
    return Windows.joined(*parts)
