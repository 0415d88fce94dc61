"""Converted pieces on their way to a shard: kept on disk, two files for each chunk of input.

`NNNNNNNN.pieces` holds the pieces, `NNNNNNNN.chunk` what the build has to know of them. The second
is written last and takes its name when it is complete: a chunk that has one is done, whatever was
killed since.
"""

import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from zipfile import BadZipFile

import numpy as np

from meloformer.errors import MidiError
from meloformer.shards.content import KEY_LENGTH
from meloformer.shards.convert import ConvertedPiece
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.tars import StoredPiece

RECORD = np.dtype(
    [
        ("key", f"S{KEY_LENGTH}"),
        ("tune", np.uint64),
        ("chunk", np.int32),
        ("row", np.int32),  # among the chunk's pieces
        ("offset", np.int64),  # in the chunk's file: .npy, then .json, then bar starts
        ("npy_size", np.int32),
        ("facts_size", np.int32),
        ("num_tokens", np.int32),
        ("num_bars", np.int32),
        ("num_notes", np.int32),
    ]
)
_BAR_STARTS_DTYPE = np.dtype("<i4")


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """What became of a chunk.

    Args:
        files: sum over the names of its files.
        records: (N,) RECORD of its pieces.
        signatures: (N, NUM_HASHES) uint32.
        rejected_lines: of rejected.jsonl, one for each file that is not a piece.
        rejected: files by reason.
        counts: what quantising cost, summed over its pieces.
    """

    files: str
    records: np.ndarray
    signatures: np.ndarray
    rejected_lines: list[str]
    rejected: Counter[str]
    counts: Counter[str]

    @property
    def num_files(self) -> int:
        return len(self.records) + len(self.rejected_lines)


class SpillWriter:
    """Writes the pieces and the rejections of one chunk.

    Args:
        folder: exists.
        chunk: number of the chunk.
        files: sum over the names of its files, to know them again.
    """

    def __init__(self, folder: Path, chunk: int, files: str) -> None:
        self._folder, self._chunk, self._files = folder, chunk, files
        self._crc32 = 0
        self._rows: list[tuple] = []
        self._signatures: list[np.ndarray] = []
        self._rejected_lines: list[str] = []
        self._rejected: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def __enter__(self) -> "SpillWriter":
        self._pieces = _unfinished(_pieces_path(self._folder, self._chunk)).open("wb")
        return self

    def add(self, piece: ConvertedPiece) -> None:
        """Keep a piece."""
        stored = piece.stored
        row = (
            stored.key.encode(),
            piece.tune,
            self._chunk,
            len(self._rows),
            self._pieces.tell(),
            len(stored.ids_npy),
            len(stored.facts_json),
            stored.num_tokens,
            len(stored.bar_starts) - 1,
            stored.num_notes,
        )
        starts = stored.bar_starts.astype(_BAR_STARTS_DTYPE).tobytes()
        data = b"".join((stored.ids_npy, stored.facts_json, starts))
        self._pieces.write(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._rows.append(row)
        self._signatures.append(piece.signature)
        self._counts.update(piece.counts)

    def reject(self, name: str, error: MidiError) -> None:
        """Write down a file that cannot become a piece, and why."""
        self._rejected[error.reason] += 1
        self._rejected_lines.append(
            rejected_line({"path": name, "reason": error.reason, "detail": error.detail})
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pieces.close()
        if error is None:
            path = _pieces_path(self._folder, self._chunk)
            _unfinished(path).replace(path)
            self._write_table()

    def _write_table(self) -> None:
        text = {
            "files": self._files,
            "crc32": self._crc32,
            "rejected_lines": self._rejected_lines,
            "rejected": self._rejected,
            "counts": self._counts,
        }
        signatures = np.array(self._signatures, np.uint32).reshape(-1, NUM_HASHES)
        table = io.BytesIO()
        np.savez(
            table,
            records=np.array(self._rows, dtype=RECORD),
            signatures=signatures,
            text=np.frombuffer(json.dumps(text, ensure_ascii=False).encode(), np.uint8),
        )
        path = _table_path(self._folder, self._chunk)
        unfinished = _unfinished(path)
        unfinished.write_bytes(table.getvalue())
        unfinished.replace(path)


def load_chunk(folder: Path, chunk: int, *, verify: bool = False) -> ChunkTable | None:
    """What became of a chunk; None where it is not done.

    Args:
        folder: holds the chunks.
        chunk: number of the chunk.
        verify: read its pieces too, as another run left them: a crash of the machine may have
            kept a file's name and lost what was in it.
    """
    try:
        with np.load(_table_path(folder, chunk), allow_pickle=False) as arrays:
            records, signatures = arrays["records"], arrays["signatures"]
            text = json.loads(arrays["text"].tobytes())
        pieces_size = _pieces_path(folder, chunk).stat().st_size
        if verify and _crc32_of(_pieces_path(folder, chunk)) != text["crc32"]:
            return None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None  # absent, or cut short by a crash of the machine
    if len(records) and _end(records[-1]) > pieces_size:
        return None
    return ChunkTable(
        files=text["files"],
        records=records,
        signatures=signatures,
        rejected_lines=text["rejected_lines"],
        rejected=Counter(text["rejected"]),
        counts=Counter(text["counts"]),
    )


def read_piece(
    folder: Path, record: np.void, extra: Mapping[str, Any] | None = None
) -> StoredPiece:
    """Take a piece back from its chunk's file.

    Args:
        folder: holds the chunks.
        record: RECORD.
        extra: facts that were not known when the piece was converted, put behind the others.
    """
    npy_size, facts_size = int(record["npy_size"]), int(record["facts_size"])
    offset = int(record["offset"])
    descriptor = os.open(_pieces_path(folder, int(record["chunk"])), os.O_RDONLY)
    try:
        data = os.pread(descriptor, _end(record) - offset, offset)
    finally:
        os.close(descriptor)
    facts = data[npy_size : npy_size + facts_size]
    return StoredPiece(
        key=record["key"].decode(),
        ids_npy=data[:npy_size],
        facts_json=with_facts(facts, extra) if extra else facts,
        num_tokens=int(record["num_tokens"]),
        num_notes=int(record["num_notes"]),
        bar_starts=np.frombuffer(
            data, _BAR_STARTS_DTYPE, int(record["num_bars"]) + 1, npy_size + facts_size
        ),
    )


def piece_facts(folder: Path, record: np.void) -> dict[str, Any]:
    """Facts of a piece, its source among them."""
    return json.loads(read_piece(folder, record).facts_json)


def with_facts(facts_json: bytes, extra: Mapping[str, Any]) -> bytes:
    """Facts with more behind them, without reading the JSON.

    >>> with_facts(b'{"a": 1}', {"b": 2})
    b'{"a": 1, "b": 2}'
    """
    return facts_json[:-1] + b", " + json.dumps(extra, ensure_ascii=False).encode()[1:]


def rejected_line(entry: dict[str, Any]) -> str:
    """One line of rejected.jsonl."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _crc32_of(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc32 = zlib.crc32(block, crc32)
    return crc32


def _end(record: np.void) -> int:
    """Byte behind a piece in its chunk's file."""
    num_starts = int(record["num_bars"]) + 1
    sizes = int(record["npy_size"]) + int(record["facts_size"])
    return int(record["offset"]) + sizes + num_starts * _BAR_STARTS_DTYPE.itemsize


def _unfinished(path: Path) -> Path:
    """Where a file grows. A worker that outlives its killed build writes to one of its own."""
    return path.with_name(f"{path.name}.{os.getpid()}.unfinished")


def _pieces_path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:08d}.pieces"


def _table_path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:08d}.chunk"
