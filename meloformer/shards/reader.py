"""Reading shards: any piece by its number, through memory maps, checked against the index."""

import hashlib
import json
import mmap
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.manifest import (
    MANIFEST_NAME,
    SPLITS,
    Manifest,
    ShardEntry,
    check_files,
    check_tokenizer,
    parse_manifest,
)
from meloformer.shards.maps import MappedIndex, Recent, index_file, map_file, tar_file
from meloformer.shards.storage import LocalFolder, Storage, open_storage
from meloformer.shards.tars import IDS_DTYPE

SHARD_CACHE = 30

# Mapped indices: two groups of shards of the plan. Small next to tars, so not worth a flag.
_INDEX_CACHE = 32


class PieceSizes(NamedTuple):
    """Counts of one piece; `prefix` is tokens before the first bar."""

    tokens: int
    bars: int
    notes: int
    prefix: int


class SplitIndex:
    """All pieces of one split, numbered 0..P-1 in the order of its shards.

    Holds what the manifest says of each shard; indices and tars are fetched and mapped when a
    piece is asked for, and few stay mapped. It may be pickled into data workers, which map for
    themselves.

    Args:
        storage: where the shards lie.
        entries: shards of the split, from the manifest.
        shard_cache: most tars that stay mapped.

    Attributes:
        first_piece: number of the first piece of each shard, and at the end P.
        fingerprint: of all that a plan can read of the split.
    """

    def __init__(
        self, storage: Storage, entries: tuple[ShardEntry, ...], *, shard_cache: int = SHARD_CACHE
    ) -> None:
        if shard_cache < 1:
            raise ShardError(f"--shard_cache {shard_cache}: allowed 1 or more")
        self.storage = storage
        self.entries = entries
        self.first_piece = [0, *accumulate(entry.pieces for entry in entries)]
        digest = hashlib.sha256()
        for entry in entries:
            digest.update(bytes.fromhex(entry.index_sha256))
        self.fingerprint = digest.hexdigest()
        self._indices: Recent[MappedIndex] = Recent(self._load_index, _INDEX_CACHE)
        self._tars: Recent[mmap.mmap] = Recent(self._load_tar, shard_cache)

    @property
    def num_pieces(self) -> int:
        return self.first_piece[-1]

    @property
    def num_shards(self) -> int:
        return len(self.entries)

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces."""
        return sum(entry.tokens for entry in self.entries)

    def pieces_of_shard(self, shard: int) -> range:
        """Numbers of the pieces that lie in a shard."""
        return range(self.first_piece[shard], self.first_piece[shard + 1])

    def order_shards(self, random: np.random.Generator) -> np.ndarray:
        """Numbers of the shards that hold pieces, shuffled."""
        return random.permutation([n for n, entry in enumerate(self.entries) if entry.pieces])

    def longest_bar(self, shard: int) -> int:
        """Upper bound on the tokens of a window of a single bar of any piece of a shard."""
        return self.entries[shard].longest_bar

    def lengths(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and bars of each piece of a shard, (P,) int32."""
        arrays = self._indices[shard].arrays
        return arrays.num_tokens, arrays.num_bars

    def chosen(self, shard: int, epoch: int) -> np.ndarray | None:
        """Rows of a shard that an epoch takes; None, all of them."""
        return None

    def prefetch(self, shards: Iterable[int], *, tars: bool = True) -> None:
        """Begin to fetch the indices, and the tars, of shards that will be wanted soon."""
        for shard in shards:
            self.storage.prefetch([index_file(self.entries[shard])])
            if tars:
                self.storage.prefetch([tar_file(self.entries[shard])])

    def sizes(self, piece: int) -> PieceSizes:
        """Counts of a piece."""
        shard, row = self._place(piece)
        arrays = self._indices[shard].arrays
        counts = (arrays.num_tokens, arrays.num_bars, arrays.num_notes, arrays.prefix_length)
        return PieceSizes(*(int(count[row]) for count in counts))

    def bar_starts(self, piece: int) -> np.ndarray:
        """(num_bars + 1,) int32 token at which each bar starts; last, the end without EOS."""
        shard, row = self._place(piece)
        return self._indices[shard].bar_starts(row)

    def key(self, piece: int) -> str:
        """Name of the piece in its tar."""
        shard, row = self._place(piece)
        return self._indices[shard].arrays.keys[row].decode()

    def keys_of_shard(self, shard: int) -> np.ndarray:
        """(P,) bytes, name of each piece of a shard."""
        return self._indices[shard].arrays.keys

    def describe(self, piece: int) -> str:
        """Where a piece lies and which file it came from, for messages."""
        shard, _ = self._place(piece)
        return f"{self._name(shard)}: piece {self.key(piece)} (from {self.facts(piece)['source']})"

    def keys(self) -> list[str]:
        """Names of all pieces; for splits that fit into memory."""
        return [
            key.decode()
            for shard in range(self.num_shards)
            for key in self._indices[shard].arrays.keys.tolist()
        ]

    def read(self, piece: int) -> np.ndarray:
        """(T,) uint16 token ids of a whole piece, a copy.

        Raises:
            ShardError: the bytes of the tar are not those that were written.
        """
        shard, row = self._place(piece)
        arrays = self._indices[shard].arrays
        num_bytes = int(arrays.num_tokens[row]) * IDS_DTYPE.itemsize
        ids_bytes = self._bytes(shard, int(arrays.ids_offset[row]), num_bytes)
        found, expected = zlib.crc32(ids_bytes), int(arrays.ids_crc32[row])
        if found != expected:
            raise ShardError(
                f"{self._name(shard)}: piece {self.key(piece)} is damaged: found crc32 "
                f"{found:08x}, expected {expected:08x}; copy the shard again from where it was "
                "made, or make the shards again with `make shard-data`"
            )
        return np.frombuffer(ids_bytes, dtype=IDS_DTYPE).astype(np.uint16)

    def facts(self, piece: int) -> dict[str, Any]:
        """What is known of a piece: its source, instruments, metres, tempo, and so on.

        Raises:
            ShardError: the bytes of the tar are no JSON.
        """
        shard, row = self._place(piece)
        arrays = self._indices[shard].arrays
        data = self._bytes(shard, int(arrays.facts_offset[row]), int(arrays.facts_size[row]))
        try:
            return json.loads(data)
        except ValueError as error:
            raise ShardError(
                f"{self._name(shard)}: the facts of piece {self.key(piece)} are no JSON "
                f"({error}); copy the shard again, or make the shards again with `make shard-data`"
            ) from error

    def _place(self, piece: int) -> tuple[int, int]:
        """Shard of a piece, and its row there."""
        if not 0 <= piece < self.num_pieces:
            raise IndexError(f"piece {piece} of {self.num_pieces}")
        shard = bisect_right(self.first_piece, piece) - 1
        return shard, piece - self.first_piece[shard]

    def _name(self, shard: int) -> str:
        return f"{self.storage.name}/{self.entries[shard].file}"

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        tar = self._tars[shard]
        # What is mapped beyond the end of a file ends the process when it is read, unheard.
        if (found := tar.size()) < offset + size:
            raise ShardError(
                f"{self._name(shard)}: found {found} bytes, expected {len(tar)}: it has been cut "
                "since this process opened it; copy the shard again from where it was made, then "
                "go on with --resume auto"
            )
        return tar[offset : offset + size]

    def _load_index(self, shard: int) -> MappedIndex:
        return MappedIndex(self.storage, self.entries[shard])

    def _load_tar(self, shard: int) -> mmap.mmap:
        return map_file(self.storage, tar_file(self.entries[shard]))


@dataclass(frozen=True)
class ShardFolder:
    """A shard folder whose manifest has been checked.

    Args:
        storage: where it lies.
        manifest: what it holds.
        manifest_sha256: of manifest.json, which holds the sums of all shards.
    """

    storage: Storage
    manifest: Manifest
    manifest_sha256: str

    @classmethod
    def open(cls, data: Path | str, cache: CacheConfig | None = None) -> "ShardFolder":
        """Check a folder or a URL and take it; its shards are not read yet.

        Of a folder on disk, the names and sizes of all files are checked; files of a URL when they
        are fetched.

        Args:
            data: folder or URL.
            cache: where files of a URL are kept.

        Raises:
            ShardError: no manifest, another format version, another vocabulary, a file that is
                missing or has another size; the message says what to do.
        """
        storage = open_storage(data, cache)
        text = storage.read_bytes(MANIFEST_NAME)
        manifest = parse_manifest(text, f"{storage.name}/{MANIFEST_NAME}")
        check_tokenizer(storage.name, manifest)
        if isinstance(storage, LocalFolder):
            check_files(storage.path, manifest)
        return cls(storage, manifest, hashlib.sha256(text).hexdigest())

    @property
    def path(self) -> Path:
        """The folder on disk.

        Raises:
            ShardError: it is a URL.
        """
        if not isinstance(self.storage, LocalFolder):
            raise ShardError(
                f"{self.storage.name}: found a URL where every byte of a folder is to be read; "
                "allowed: a folder on this machine; copy the shards first"
            )
        return self.storage.path

    def split(self, name: str, *, shard_cache: int = SHARD_CACHE) -> SplitIndex:
        """Pieces of `train`, `valid` or `test`; a split may be empty.

        Raises:
            ShardError: no such split.
        """
        if name not in SPLITS:
            raise ShardError(
                f"{self.storage.name}: no split {name!r}; there are {', '.join(SPLITS)}"
            )
        return SplitIndex(self.storage, self.manifest.splits[name], shard_cache=shard_cache)
