"""The index of one shard: where each piece lies in the tar, and how long it and its bars are."""

import io
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from meloformer.errors import ShardError


@dataclass(frozen=True, eq=False, kw_only=True)
class ShardIndex:
    """Arrays over the P pieces of one shard, in the order of the tar.

    Args:
        keys: (P,) bytes, name of the piece in the tar, without suffix.
        ids_offset: (P,) int64, byte of the tar where the token ids start (after the .npy header).
        ids_crc32: (P,) uint32, of the bytes of the token ids.
        facts_offset: (P,) int64, byte of the tar where the JSON facts start.
        facts_size: (P,) int32, bytes of JSON.
        num_tokens: (P,) int32.
        num_bars: (P,) int32.
        num_notes: (P,) int32.
        prefix_length: (P,) int32, tokens before the first bar.
        bar_starts: (sum(num_bars + 1),) int32, for each piece the token at which each bar starts
            and, last, the end of its last bar.
    """

    keys: np.ndarray
    ids_offset: np.ndarray
    ids_crc32: np.ndarray
    facts_offset: np.ndarray
    facts_size: np.ndarray
    num_tokens: np.ndarray
    num_bars: np.ndarray
    num_notes: np.ndarray
    prefix_length: np.ndarray
    bar_starts: np.ndarray

    @property
    def num_pieces(self) -> int:
        return len(self.keys)

    def to_bytes(self) -> bytes:
        """An uncompressed .npz; equal arrays give equal bytes."""
        file = io.BytesIO()
        np.savez(file, **{field.name: getattr(self, field.name) for field in fields(self)})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> "ShardIndex":
        """Read what `to_bytes` wrote.

        Args:
            data: the whole file.
            path: for the message.

        Raises:
            ShardError: an array is missing, unreadable, or of another length.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                index = cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (KeyError, ValueError, OSError, BadZipFile) as error:
            raise ShardError(
                f"{path} is no shard index ({error}); copy it again, or make the shards again "
                "with `make shard-data`"
            ) from error
        lengths = {len(getattr(index, field.name)) for field in fields(cls)[:-1]}
        num_starts = int(index.num_bars.sum()) + index.num_pieces
        if len(lengths) != 1 or len(index.bar_starts) != num_starts:
            raise ShardError(
                f"{path}: found arrays of lengths {sorted(lengths)} and {len(index.bar_starts)} "
                f"bar starts, expected one length and {num_starts}; make the shards again"
            )
        return index
