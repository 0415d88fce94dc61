"""Pieces that one folder of a mixture trains on while another one holds them out.

Each folder splits its own pieces, so a piece of two folders may be for training in one and for
validation or test in the other: training on it would spoil the measure. What is compared are keys,
hashes of all notes: exact copies are found, arrangements and other versions of a piece are not.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from meloformer.batches.piece_index import PieceIndex

# Indices that are fetched ahead, where shards are remote.
_AHEAD = 16


def held_out_elsewhere(
    train: Sequence[PieceIndex], held_out: Sequence[Sequence[PieceIndex]]
) -> tuple[np.ndarray, ...]:
    """Training pieces of each folder that another folder keeps for validation or test.

    Memory grows with the keys of what is held out; of training pieces one shard is looked at at a
    time.

    Args:
        train: the training split of each folder.
        held_out: the other splits of each folder.

    Returns:
        For each folder (N,) int64 numbers of pieces, ascending.
    """
    kept = [_keys(splits) for splits in held_out]
    found = []
    for number, index in enumerate(train):
        others = np.sort(np.concatenate([*kept[:number], *kept[number + 1 :], _keys(())]))
        pieces = [np.zeros(0, np.int64)]
        for shard, keys in _keys_of_shards(index):
            rows = np.flatnonzero(_is_in(keys, others))
            pieces.append(rows + index.pieces_of_shard(shard).start)
        found.append(np.concatenate(pieces))
    return tuple(found)


def _keys(splits: Sequence[PieceIndex]) -> np.ndarray:
    # Copies: a view would keep the file of its shard open.
    parts = [keys.copy() for split in splits for _, keys in _keys_of_shards(split)]
    return np.concatenate([np.zeros(0, "S1"), *parts])


def _keys_of_shards(index: PieceIndex) -> Iterator[tuple[int, np.ndarray]]:
    for shard in range(index.num_shards):
        if shard % _AHEAD == 0:
            index.prefetch(range(shard, min(shard + 2 * _AHEAD, index.num_shards)), tars=False)
        yield shard, index.keys_of_shard(shard)


def _is_in(keys: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    if not len(ascending):
        return np.zeros(len(keys), bool)
    places = np.searchsorted(ascending, keys).clip(max=len(ascending) - 1)
    return ascending[places] == keys
