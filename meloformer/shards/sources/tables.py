"""MIDI in tables on disk: Parquet, and Arrow as Hugging Face `datasets` writes it.

Rows are read in order, a few at a time, and their bytes go to the workers: a worker that looked
one up would have to unpack all that is packed together with it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from meloformer.errors import ConfigError
from meloformer.midi.limits import MAX_FILE_BYTES
from meloformer.shards.sources import expansion
from meloformer.shards.sources.columns import (
    Columns,
    bytes_columns,
    choose_columns,
    facts_of,
    location_columns,
)
from meloformer.shards.sources.files import (
    CarriedFile,
    FileOnDisk,
    MidiFile,
    RefusedFile,
    is_unsafe,
    tidy_name,
    too_big,
)
from meloformer.shards.sources.leaves import Findings, damaged

if TYPE_CHECKING:
    import pyarrow

_ROWS_PER_BATCH = 16
_PARQUET_BUFFER_BYTES = 2**20
_FILE_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True)
class Table:
    """A .parquet or .arrow file on disk."""

    name: str
    path: str
    holds_midi: bool = True

    def survey(self, findings: Findings) -> int:
        with _opened(self.path) as rows:
            columns = _columns(rows)
            if columns is None:
                return 1
            findings.columns.add(self.name, columns)
            return rows.count()

    def files(self, findings: Findings) -> Iterator[MidiFile]:
        with _opened(self.path) as rows:
            columns = _columns(rows)
            if columns is None:
                found = ", ".join(f"{field.name} ({field.type})" for field in rows.schema)
                yield RefusedFile(
                    self.name,
                    "no_midi_column",
                    f"found {found[:500]}; allowed are bytes of MIDI, a struct with such `bytes`, "
                    "or a text column (location, file_name, path ...) that names MIDI files",
                )
                return
            base = self._base(rows, columns)
            number = 0
            for batch in rows.batches(columns.all):
                facts = [facts_of(row) for row in _values(batch, columns.facts)]
                for row in range(len(batch)):
                    yield self._file(batch, row, number, columns, base, facts[row])
                    number += 1

    def files_named_below(self, folder: str) -> Iterator[str]:
        """Paths below a folder of the files that rows name there instead of holding them."""
        with _opened(self.path) as rows:
            columns = _columns(rows)
            if columns is None or columns.location is None:
                return
            if not os.path.samefile(self._base(rows, columns), folder):
                return
            for batch in rows.batches([columns.location]):
                for row in _values(batch, (columns.location,)):
                    if row[columns.location] is not None:
                        yield tidy_name(row[columns.location])

    def _base(self, rows: "_Rows", columns: Columns) -> str:
        """The folder that locations start from: the table's own, or the one above it."""
        own = os.path.dirname(self.path) or "."
        if columns.location is not None:
            first = next(rows.batches([columns.location]), None)
            names = [] if first is None else _values(first, (columns.location,))
            for base in (own, os.path.join(own, os.pardir)):
                if any(_exists(base, row[columns.location]) for row in names):
                    return base
        return own

    def _file(
        self,
        batch: "pyarrow.RecordBatch",
        row: int,
        number: int,
        columns: Columns,
        base: str,
        facts: dict[str, Any],
    ) -> MidiFile:
        name = f"{self.name}/{number}"
        path = None
        if columns.midi is not None:
            cell = batch.column(columns.midi)[row]
            if cell.is_valid and hasattr(cell, "items"):  # {bytes, path}
                path = cell["path"].as_py() if "path" in cell else None
                cell = cell["bytes"]
            if cell.is_valid:
                if cell.as_buffer().size > MAX_FILE_BYTES:
                    return RefusedFile(name, too_big().reason, too_big().detail)
                return CarriedFile(name, cell.as_py(), facts)
        elif columns.location is not None:
            path = _values(batch, (columns.location,))[row][columns.location]
        if not path:
            return RefusedFile(name, "missing_file", "the row has neither bytes nor a location")
        if is_unsafe(path):
            return RefusedFile(name, "unsafe_path", f"{path!r} leads out of the dataset")
        inside = tidy_name(path)
        prefix = self._prefix(base)
        return FileOnDisk(prefix + inside, os.path.join(base, inside), facts)

    def _prefix(self, base: str) -> str:
        """What stands before a location in the names of this source."""
        parts = self.name.split("/")[:-1]
        if base.endswith(os.pardir):
            parts = parts[:-1]
        return "".join(f"{part}/" for part in parts)


class _Rows(Protocol):
    """Rows of an open table."""

    schema: "pyarrow.Schema"

    def count(self) -> int:
        """Number of rows."""

    def batches(self, columns: list[str]) -> "Iterator[pyarrow.RecordBatch]":
        """Few rows at a time, from the first."""


class _ParquetRows:
    def __init__(self, path: str) -> None:
        import pyarrow.parquet

        # Buffered and not read ahead: else a row group is held whole, however large it is.
        self._file = pyarrow.parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=_PARQUET_BUFFER_BYTES
        )
        self.schema = self._file.schema_arrow
        for number in range(self._file.metadata.num_row_groups):
            group = self._file.metadata.row_group(number)
            columns = [group.column(index) for index in range(group.num_columns)]
            expansion.check_archive(
                path,
                sum(column.total_uncompressed_size for column in columns),
                sum(column.total_compressed_size for column in columns),
            )

    def count(self) -> int:
        return int(self._file.metadata.num_rows)

    def batches(self, columns: list[str]) -> "Iterator[pyarrow.RecordBatch]":
        yield from self._file.iter_batches(_ROWS_PER_BATCH, columns=columns, use_threads=False)


class _ArrowRows:
    """Arrow's stream format, which `datasets` writes, or its file format."""

    def __init__(self, path: str) -> None:
        self._path = path
        with open(path, "rb") as file:
            self._is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            if not self._is_file:
                # The library takes a stream that breaks off between batches for a shorter one.
                file.seek(max(0, file.seek(0, os.SEEK_END) - len(_STREAM_END)))
                if file.read() != _STREAM_END:
                    raise ValueError("it breaks off: there is no end marker")
        with self._reader() as reader:
            self.schema = reader.schema

    def count(self) -> int:
        return sum(len(batch) for batch in self._batches())

    def batches(self, columns: list[str]) -> "Iterator[pyarrow.RecordBatch]":
        for batch in self._batches():
            chosen = batch.select(columns)
            for start in range(0, len(chosen), _ROWS_PER_BATCH):
                yield chosen.slice(start, _ROWS_PER_BATCH)

    def _batches(self) -> "Iterator[pyarrow.RecordBatch]":
        with self._reader() as reader:
            if self._is_file:
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number)
            else:
                yield from reader

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        import pyarrow

        # Mapped: rows are looked at where they lie.
        with pyarrow.memory_map(self._path) as file:
            opener = pyarrow.ipc.open_file if self._is_file else pyarrow.ipc.open_stream
            with opener(file) as reader:
                yield reader


@contextmanager
def _opened(path: str) -> Iterator[_Rows]:
    pyarrow = _pyarrow(path)
    try:
        yield _ParquetRows(path) if path.lower().endswith(".parquet") else _ArrowRows(path)
    except (pyarrow.ArrowException, OSError, ValueError, EOFError) as error:
        raise damaged(path, error) from error


def _pyarrow(path: str) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise ConfigError(
            f"{path}: package pyarrow not found; it reads Parquet and Arrow: pip install pyarrow"
        ) from error
    return pyarrow


def _columns(rows: _Rows) -> Columns | None:
    candidates = [*bytes_columns(rows.schema), *location_columns(rows.schema)]
    first = next(rows.batches(candidates), None) if candidates else None
    return choose_columns(
        rows.schema, [] if first is None else _values(first, tuple(first.schema.names))
    )


def _values(batch: "pyarrow.RecordBatch", columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Values of some columns by row; text that is not UTF-8 is mended."""
    lists = []
    for name in columns:
        column = batch.column(name)
        try:
            lists.append(column.to_pylist())
        except UnicodeDecodeError:
            lists.append([_mended(cell) for cell in column])
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)] or [
        {} for _ in range(len(batch))
    ]


def _mended(cell: "pyarrow.Scalar") -> str | None:
    try:
        value: str | None = cell.as_py()
    except UnicodeDecodeError:
        buffer = getattr(cell, "as_buffer", None)
        return None if buffer is None else bytes(buffer()).decode("utf-8", "replace")
    return value


def _exists(base: str, name: str | None) -> bool:
    if not name or is_unsafe(name):
        return False
    return os.path.exists(os.path.join(base, tidy_name(name)))
