"""One shard: a plain WebDataset tar whose bytes depend on its pieces alone, with its index."""

import io
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meloformer.shards.index import ShardIndex
from meloformer.shards.manifest import ShardEntry, sha256_of

IDS_SUFFIX = ".npy"
FACTS_SUFFIX = ".json"
INDEX_SUFFIX = ".index.npz"
IDS_DTYPE = np.dtype("<u2")


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredPiece:
    """One piece as it goes into a shard.

    Args:
        key: name in the tar, without dots.
        ids_npy: the .npy file that holds the (T,) uint16 token ids.
        facts_json: the .json file.
        num_tokens: T.
        num_notes: notes.
        bar_starts: (num_bars + 1,) int32 token at which each bar starts, and the end of the last.
    """

    key: str
    ids_npy: bytes
    facts_json: bytes
    num_tokens: int
    num_notes: int
    bar_starts: np.ndarray


def ids_to_npy(ids: np.ndarray) -> bytes:
    """(T,) token ids as the bytes of an .npy file, little-endian uint16."""
    file = io.BytesIO()
    np.lib.format.write_array(file, ids.astype(IDS_DTYPE), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def stored_bytes(file_size: np.ndarray) -> np.ndarray:
    """Bytes that files of these sizes take in a tar: a header each, and whole blocks.

    >>> stored_bytes(np.array([1, 512, 513])).tolist()
    [1024, 1024, 1536]
    """
    num_blocks = 1 + -(-file_size.astype(np.int64) // tarfile.BLOCKSIZE)
    return num_blocks * tarfile.BLOCKSIZE


def shard_stem(number: int) -> str:
    """Name of the number-th shard of a split, without suffix.

    >>> shard_stem(3)
    'shard-000003'
    """
    return f"shard-{number:06d}"


def write_shard(folder: Path, stem: str, pieces: Iterable[StoredPiece]) -> ShardEntry:
    """Write one tar and its index; same pieces, same bytes.

    Args:
        folder: the shard folder.
        stem: path of the shard inside it, without suffix (`train/shard-000000`).
        pieces: at least one, in the order to be stored.
    """
    tar_path, index_path = folder / f"{stem}.tar", folder / f"{stem}{INDEX_SUFFIX}"
    tar_path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[tuple] = []
    bar_starts: list[np.ndarray] = []
    with tarfile.open(tar_path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for piece in pieces:
            npy_offset = _add(tar, piece.key + IDS_SUFFIX, piece.ids_npy)
            facts_offset = _add(tar, piece.key + FACTS_SUFFIX, piece.facts_json)
            header_size = len(piece.ids_npy) - piece.num_tokens * IDS_DTYPE.itemsize
            rows.append(
                (
                    piece.key.encode(),
                    npy_offset + header_size,
                    zlib.crc32(memoryview(piece.ids_npy)[header_size:]),
                    facts_offset,
                    len(piece.facts_json),
                    piece.num_tokens,
                    len(piece.bar_starts) - 1,
                    piece.num_notes,
                    int(piece.bar_starts[0]),
                )
            )
            bar_starts.append(piece.bar_starts)
    columns = list(zip(*rows, strict=True))
    index = ShardIndex(
        keys=np.array(columns[0], dtype=bytes),
        ids_offset=np.array(columns[1], dtype=np.int64),
        ids_crc32=np.array(columns[2], dtype=np.uint32),
        facts_offset=np.array(columns[3], dtype=np.int64),
        facts_size=np.array(columns[4], dtype=np.int32),
        num_tokens=np.array(columns[5], dtype=np.int32),
        num_bars=np.array(columns[6], dtype=np.int32),
        num_notes=np.array(columns[7], dtype=np.int32),
        prefix_length=np.array(columns[8], dtype=np.int32),
        bar_starts=np.concatenate(bar_starts).astype(np.int32),
    )
    index.save(index_path)
    return ShardEntry(
        file=f"{stem}.tar",
        bytes=tar_path.stat().st_size,
        sha256=sha256_of(tar_path),
        index_file=f"{stem}{INDEX_SUFFIX}",
        index_bytes=index_path.stat().st_size,
        index_sha256=sha256_of(index_path),
        pieces=index.num_pieces,
        bars=int(index.num_bars.sum()),
        notes=int(index.num_notes.sum()),
        tokens=int(index.num_tokens.sum()),
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file without time, owner or rights of this machine; returns its data's offset."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    offset = tar.offset + tarfile.BLOCKSIZE  # a USTAR header of a short name is one block
    tar.addfile(member, io.BytesIO(data))
    return offset
