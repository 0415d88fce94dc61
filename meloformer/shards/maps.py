"""Files of shards as memory maps, a few at a time: their pages are shared by all processes."""

import hashlib
import io
import mmap
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Generic, TypeVar

import numpy as np

from meloformer.errors import ShardError
from meloformer.shards.index import ShardIndex
from meloformer.shards.manifest import ShardEntry
from meloformer.shards.storage import Storage, StoredFile, open_file

T = TypeVar("T")

# A local header of a zip: this many bytes, the last four the lengths of name and extra field.
_LOCAL_HEADER_BYTES = 30


class Recent(Generic[T]):
    """What was asked for last, by number; the one not used for longest makes room.

    Args:
        load: makes what is not there.
        size: most that are kept.

    >>> squares = Recent(lambda number: number**2, size=2)
    >>> [squares[1], squares[2], squares[1], squares[3]], list(squares.kept)
    ([1, 4, 1, 9], [1, 3])
    """

    def __init__(self, load: Callable[[int], T], size: int) -> None:
        self._load, self._size = load, size
        self.kept: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, number: int) -> T:
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        loaded = self._load(number)
        while len(self.kept) >= self._size:
            self.kept.popitem(last=False)
        self.kept[number] = loaded
        return loaded

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps for itself.
        return self.__dict__ | {"kept": OrderedDict()}


def map_file(storage: Storage, stored: StoredFile) -> mmap.mmap:
    """The bytes of a file, mapped; readable as long as the map lives, evicted or not.

    Raises:
        ShardError: it is missing, cannot be read, or has another size.
    """
    what = f"{storage.name}/{stored.file}"
    with open_file(storage, stored) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ShardError(
                f"{what} cannot be read ({error}); copy it again from where it was made, "
                "or make the shards again with `make shard-data`"
            ) from error
    if len(mapped) != stored.num_bytes:
        raise ShardError(f"{what}: found {len(mapped)} bytes, expected {stored.num_bytes}")
    return mapped


class MappedIndex:
    """The index of one shard, mapped and verified.

    Args:
        storage: where the shard lies.
        entry: what the manifest says of it.

    Raises:
        ShardError: the file is missing, damaged, or does not fit the manifest.

    Attributes:
        arrays: where each piece lies and how long it is.
    """

    def __init__(self, storage: Storage, entry: ShardEntry) -> None:
        what = f"{storage.name}/{entry.index_file}"
        data = map_file(storage, index_file(entry))
        found = hashlib.sha256(data).hexdigest()
        if found != entry.index_sha256:
            raise ShardError(
                f"{what} is damaged: found sha256 {found[:16]}, expected "
                f"{entry.index_sha256[:16]}; copy it again from where it was made, or make the "
                "shards again with `make shard-data`"
            )
        try:
            arrays = _arrays_of(data)
            self.arrays = ShardIndex(
                **{item.name: arrays[item.name] for item in fields(ShardIndex)}
            )
            # (P + 1,) where the bar starts of each piece begin.
            self._edges = np.concatenate(
                [[0], np.cumsum(self.arrays.num_bars.astype(np.int64) + 1)]
            )
        except (KeyError, ValueError, OSError, struct.error, zipfile.BadZipFile) as error:
            raise ShardError(
                f"{what} is no shard index ({error}); copy it again, or make the shards again "
                "with `make shard-data`"
            ) from error
        lengths = {len(getattr(self.arrays, item.name)) for item in fields(ShardIndex)[:-1]}
        if lengths != {entry.pieces} or len(self.arrays.bar_starts) != self._edges[-1]:
            raise ShardError(
                f"{what}: found arrays of lengths {sorted(lengths)} and "
                f"{len(self.arrays.bar_starts)} bar starts, expected {entry.pieces} pieces and "
                f"{self._edges[-1]} bar starts; make the shards again with `make shard-data`"
            )

    def bar_starts(self, row: int) -> np.ndarray:
        """(num_bars + 1,) token at which each bar of the row-th piece starts, and the end."""
        return self.arrays.bar_starts[self._edges[row] : self._edges[row + 1]]


def tar_file(entry: ShardEntry) -> StoredFile:
    """The tar of a shard."""
    return StoredFile(entry.file, entry.bytes, entry.sha256)


def index_file(entry: ShardEntry) -> StoredFile:
    """The index of a shard."""
    return StoredFile(entry.index_file, entry.index_bytes, entry.index_sha256)


def _arrays_of(npz: mmap.mmap) -> dict[str, np.ndarray]:
    """Arrays of an uncompressed .npz; they stay in the map."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(npz)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} is compressed")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
                header_bytes = file.tell()
            if version != (1, 0) or is_fortran or dtype.hasobject or len(shape) != 1:
                raise ValueError(f"{member.filename} is no plain array")
            # The local header may be longer than the central directory says.
            behind_header = member.header_offset + _LOCAL_HEADER_BYTES
            name_and_extra = struct.unpack_from("<HH", npz, behind_header - 4)
            arrays[member.filename.removesuffix(".npy")] = np.frombuffer(
                npz,
                dtype=dtype,
                count=shape[0],
                offset=behind_header + sum(name_and_extra) + header_bytes,
            )
    return arrays
