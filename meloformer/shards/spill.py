"""Converted pieces on their way to a shard: kept on disk, one file per chunk of input."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from meloformer.errors import MidiError
from meloformer.shards.content import KEY_LENGTH
from meloformer.shards.convert import ConvertedPiece
from meloformer.shards.tars import StoredPiece

# All that the build holds in memory of a piece.
RECORD = np.dtype(
    [
        ("key", f"S{KEY_LENGTH}"),
        ("tune", np.uint64),
        ("chunk", np.int32),
        ("offset", np.int64),  # in the chunk's file: .npy, then .json, then bar starts
        ("npy_size", np.int32),
        ("facts_size", np.int32),
        ("num_tokens", np.int32),
        ("num_bars", np.int32),
        ("num_notes", np.int32),
    ]
)
_BAR_STARTS_DTYPE = np.dtype("<i4")


class SpillWriter:
    """Writes the pieces and the rejections of one chunk.

    Args:
        folder: exists.
        chunk: number of the chunk; what an earlier try of it wrote is replaced.
    """

    def __init__(self, folder: Path, chunk: int) -> None:
        self._chunk = chunk
        self._pieces = _pieces_path(folder, chunk).open("wb")
        self._rejected = _rejected_path(folder, chunk).open("w", encoding="utf-8")
        self._rows: list[tuple] = []

    def add(self, piece: ConvertedPiece) -> None:
        """Keep a piece."""
        stored = piece.stored
        row = (
            stored.key.encode(),
            piece.tune,
            self._chunk,
            self._pieces.tell(),
            len(stored.ids_npy),
            len(stored.facts_json),
            stored.num_tokens,
            len(stored.bar_starts) - 1,
            stored.num_notes,
        )
        self._rows.append(row)
        self._pieces.write(stored.ids_npy)
        self._pieces.write(stored.facts_json)
        self._pieces.write(stored.bar_starts.astype(_BAR_STARTS_DTYPE).tobytes())

    def reject(self, name: str, error: MidiError) -> None:
        """Write down a file that cannot become a piece, and why."""
        line = {"path": name, "reason": error.reason, "detail": error.detail}
        self._rejected.write(rejected_line(line))

    def records(self) -> np.ndarray:
        """(N,) RECORD of the pieces, in the order of the chunk."""
        return np.array(self._rows, dtype=RECORD)

    def __enter__(self) -> "SpillWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pieces.close()
        self._rejected.close()


def rejected_line(entry: dict[str, Any]) -> str:
    """One line of rejected.jsonl."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def read_piece(folder: Path, record: np.void) -> StoredPiece:
    """Take a piece back from its chunk's file."""
    npy_size, facts_size = int(record["npy_size"]), int(record["facts_size"])
    num_starts = int(record["num_bars"]) + 1
    with _pieces_path(folder, int(record["chunk"])).open("rb") as file:
        file.seek(int(record["offset"]))
        data = file.read(npy_size + facts_size + num_starts * _BAR_STARTS_DTYPE.itemsize)
    return StoredPiece(
        key=record["key"].decode(),
        ids_npy=data[:npy_size],
        facts_json=data[npy_size : npy_size + facts_size],
        num_tokens=int(record["num_tokens"]),
        num_notes=int(record["num_notes"]),
        bar_starts=np.frombuffer(data, _BAR_STARTS_DTYPE, num_starts, npy_size + facts_size),
    )


def piece_source(folder: Path, record: np.void) -> str:
    """Name of the file that a piece came from."""
    return json.loads(read_piece(folder, record).facts_json)["source"]


def rejected_lines(folder: Path, num_chunks: int) -> Iterator[str]:
    """Lines of all chunks, in the order of the input."""
    for chunk in range(num_chunks):
        with _rejected_path(folder, chunk).open(encoding="utf-8") as file:
            yield from file


def _pieces_path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:08d}.pieces"


def _rejected_path(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:08d}.rejected.jsonl"
