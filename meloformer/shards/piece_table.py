"""The facts of all pieces as one Parquet file: a row a piece, typed columns, bounded memory."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meloformer.midi.bars import BarCounts
from meloformer.midi.quantise import QuantiseCounts

ROWS_PER_GROUP = 8192

QUANTISED = tuple(f.name for f in (*fields(QuantiseCounts), *fields(BarCounts)) if f.name != "bars")

_PLAIN_COLUMNS = (
    ("piece", pa.string()),
    ("source", pa.string()),
    ("split", pa.dictionary(pa.int8(), pa.string())),
    ("cluster", pa.string()),
    ("tune", pa.string()),
    ("num_tokens", pa.int32()),
    ("num_bars", pa.int32()),
    ("num_notes", pa.int32()),
    ("longest_bar", pa.int32()),
    ("duration_seconds", pa.float64()),
    ("instruments", pa.list_(pa.string())),
    ("metres", pa.list_(pa.string())),
    ("key", pa.string()),
    ("off_grid", pa.float32()),
    ("recovered", pa.string()),
)
_TEMPOS = ("tempo_bpm_lowest", "tempo_bpm_highest")
_KNOWN = {name for name, _ in _PLAIN_COLUMNS} | {"tempo_bpm", "quantised"}

# `extra` holds, as JSON, what the facts say beyond these columns: captions and the like.
SCHEMA = pa.schema(
    [
        *_PLAIN_COLUMNS,
        *((name, pa.float32()) for name in _TEMPOS),
        *((f"quantised_{name}", pa.int32()) for name in QUANTISED),
        ("extra", pa.string()),
    ]
)


def row_groups(pieces: Iterable[Mapping[str, Any]]) -> Iterator[pa.Table]:
    """Facts as tables of at most ROWS_PER_GROUP rows; what a piece does not say is null."""
    rest = iter(pieces)
    while batch := list(islice(rest, ROWS_PER_GROUP)):
        yield _table(batch)


def _table(batch: list[Mapping[str, Any]]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        name: [facts.get(name) for facts in batch] for name, _ in _PLAIN_COLUMNS
    }
    for place, name in enumerate(_TEMPOS):
        columns[name] = [facts["tempo_bpm"][place] for facts in batch]
    for name in QUANTISED:
        columns[f"quantised_{name}"] = [facts.get("quantised", {}).get(name) for facts in batch]
    columns["extra"] = [_extra(facts) for facts in batch]
    return pa.table(columns, schema=SCHEMA)


def _extra(facts: Mapping[str, Any]) -> str | None:
    extra = {name: facts[name] for name in facts if name not in _KNOWN}
    return json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else None


@contextmanager
def parquet_writer(path: Path) -> Iterator[pq.ParquetWriter]:
    """Takes row groups one after the other; same tables, same bytes."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        yield writer


def cluster_sizes(path: Path, *, rows_at_once: int = 1 << 22) -> dict[int, int]:
    """How many clusters have how many pieces, read from a written file.

    The clusters are counted in as many passes as keep `rows_at_once` of them in memory.

    Args:
        path: the Parquet file.
        rows_at_once: about how many pieces a pass counts.

    Returns:
        Number of clusters by number of pieces; pieces without a cluster are left out.
    """
    file = pq.ParquetFile(path)
    num_passes = max(1, -(-file.metadata.num_rows // rows_at_once))
    sizes: dict[int, int] = {}
    for number in range(num_passes):
        parts = [
            _cluster_numbers(file, group, number, num_passes)
            for group in range(file.num_row_groups)
        ]
        _, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]), return_counts=True)
        for size, clusters in zip(*np.unique(counts, return_counts=True), strict=True):
            sizes[int(size)] = sizes.get(int(size), 0) + int(clusters)
    return sizes


def _cluster_numbers(file: pq.ParquetFile, group: int, number: int, num_passes: int) -> np.ndarray:
    names = file.read_row_group(group, columns=["cluster"])["cluster"].to_pylist()
    # Sixty-four bits of a hash: two clusters that meet would only be counted as one.
    numbers = np.array([int(name[:16], 16) for name in names if name is not None], dtype=np.uint64)
    return numbers[numbers % np.uint64(num_passes) == number]
