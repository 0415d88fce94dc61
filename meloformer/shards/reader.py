"""Reading shards: any piece by its number, through memory maps, checked against the index."""

import hashlib
import json
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.index import ShardIndex
from meloformer.shards.manifest import (
    SPLITS,
    Manifest,
    ShardEntry,
    check_files,
    check_tokenizer,
    load_manifest,
)
from meloformer.shards.tars import IDS_DTYPE

SHARD_CACHE = 30


class SplitIndex:
    """All pieces of one split, numbered 0..P-1 in the order of its shards.

    Holds the indices of all shards; tars are mapped when a piece is read, and at most
    `shard_cache` stay mapped. It may be pickled into data workers, which map for themselves.

    Args:
        folder: the shard folder.
        entries: shards of the split, from the manifest.
        shard_cache: most tars that stay mapped.

    Raises:
        ShardError: an index is damaged.

    Attributes:
        shard: (P,) int32, shard of each piece.
        num_tokens: (P,) int32.
        num_bars: (P,) int32.
        num_notes: (P,) int32.
        prefix_length: (P,) int32, tokens before the first bar.
    """

    def __init__(
        self, folder: Path, entries: tuple[ShardEntry, ...], *, shard_cache: int = SHARD_CACHE
    ) -> None:
        if shard_cache < 1:
            raise ShardError(f"shard_cache {shard_cache}: allowed 1 or more")
        self.folder = folder
        self.entries = entries
        self.shard_cache = shard_cache
        indices = [_load_index(folder, entry) for entry in entries]

        def joined(name: str, dtype: type) -> np.ndarray:
            parts = [getattr(index, name) for index in indices]
            return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)

        sizes = [index.num_pieces for index in indices]
        self.first_piece = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.shard = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.keys = np.concatenate([np.zeros(0, "S1"), *(index.keys for index in indices)])
        self.num_tokens = joined("num_tokens", np.int32)
        self.num_bars = joined("num_bars", np.int32)
        self.num_notes = joined("num_notes", np.int32)
        self.prefix_length = joined("prefix_length", np.int32)
        self._ids_offset = joined("ids_offset", np.int64)
        self._ids_crc32 = joined("ids_crc32", np.uint32)
        self._facts_offset = joined("facts_offset", np.int64)
        self._facts_size = joined("facts_size", np.int32)
        self._bar_starts = joined("bar_starts", np.int32)
        self._first_bar_start = np.concatenate([[0], np.cumsum(self.num_bars.astype(np.int64) + 1)])
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def num_pieces(self) -> int:
        return len(self.shard)

    @property
    def num_shards(self) -> int:
        return len(self.entries)

    def pieces_of_shard(self, shard: int) -> range:
        """Numbers of the pieces that lie in a shard."""
        return range(int(self.first_piece[shard]), int(self.first_piece[shard + 1]))

    def bar_starts(self, piece: int) -> np.ndarray:
        """(num_bars + 1,) int32 token at which each bar starts; last, the end without EOS."""
        return self._bar_starts[self._first_bar_start[piece] : self._first_bar_start[piece + 1]]

    def key(self, piece: int) -> str:
        """Name of the piece in its tar."""
        return self.keys[piece].decode()

    def read(self, piece: int) -> np.ndarray:
        """(T,) uint16 token ids of a whole piece, a copy.

        Raises:
            ShardError: the bytes of the tar are not those that were written.
        """
        ids_bytes = self._bytes(
            piece, self._ids_offset[piece], int(self.num_tokens[piece]) * IDS_DTYPE.itemsize
        )
        found, expected = zlib.crc32(ids_bytes), int(self._ids_crc32[piece])
        if found != expected:
            raise ShardError(
                f"{self._path(piece)}: piece {self.key(piece)} is damaged: found crc32 "
                f"{found:08x}, expected {expected:08x}; copy the shard again from where it was "
                "made, or make the shards again with `make shard-data`"
            )
        return np.frombuffer(ids_bytes, dtype=IDS_DTYPE).astype(np.uint16)

    def facts(self, piece: int) -> dict[str, Any]:
        """What is known of a piece: its source, instruments, metres, tempo, and so on.

        Raises:
            ShardError: the bytes of the tar are no JSON.
        """
        data = self._bytes(piece, self._facts_offset[piece], int(self._facts_size[piece]))
        try:
            return json.loads(data)
        except ValueError as error:
            raise ShardError(
                f"{self._path(piece)}: the facts of piece {self.key(piece)} are no JSON "
                f"({error}); copy the shard again, or make the shards again with `make shard-data`"
            ) from error

    def _path(self, piece: int) -> Path:
        return self.folder / self.entries[self.shard[piece]].file

    def _bytes(self, piece: int, offset: int, size: int) -> bytes:
        return self._map(int(self.shard[piece]))[offset : offset + size].tobytes()

    def _map(self, shard: int) -> np.ndarray:
        """The mapped bytes of a tar; the one not used for longest makes room."""
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        path, expected = self.folder / self.entries[shard].file, self.entries[shard].bytes
        try:
            mapped = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise ShardError(
                f"{path} cannot be read ({error}); copy it again from where it was made, "
                "or make the shards again with `make shard-data`"
            ) from error
        if len(mapped) != expected:
            raise ShardError(f"{path}: found {len(mapped)} bytes, expected {expected}")
        while len(self._maps) >= self.shard_cache:
            self._maps.popitem(last=False)
        self._maps[shard] = mapped
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict()}


@dataclass(frozen=True)
class ShardFolder:
    """A shard folder whose manifest, file names and sizes have been checked.

    Args:
        path: the folder.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> "ShardFolder":
        """Check a folder and take it; its tars are not read yet.

        Raises:
            ShardError: no manifest, another format version, another vocabulary, a file that is
                missing or has another size; the message says what to do.
        """
        folder = Path(path)
        manifest = load_manifest(folder)
        check_tokenizer(folder, manifest)
        check_files(folder, manifest)
        return cls(folder, manifest)

    def split(self, name: str, *, shard_cache: int = SHARD_CACHE) -> SplitIndex:
        """Pieces of `train`, `valid` or `test`; a split may be empty.

        Raises:
            ShardError: no such split, or an index is damaged.
        """
        if name not in SPLITS:
            raise ShardError(f"{self.path}: no split {name!r}; there are {', '.join(SPLITS)}")
        return SplitIndex(self.path, self.manifest.splits[name], shard_cache=shard_cache)


def _load_index(folder: Path, entry: ShardEntry) -> ShardIndex:
    path = folder / entry.index_file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error}); copy the shards again") from error
    found = hashlib.sha256(data).hexdigest()
    if found != entry.index_sha256:
        raise ShardError(
            f"{path} is damaged: found sha256 {found[:16]}, expected {entry.index_sha256[:16]}; "
            "copy it again from where it was made, or make the shards again with `make shard-data`"
        )
    index = ShardIndex.from_bytes(data, path)
    if index.num_pieces != entry.pieces:
        raise ShardError(f"{path}: found {index.num_pieces} pieces, expected {entry.pieces}")
    return index
