"""Files that misbehave. They are built of the standard library so that a worker can load them."""

import json
import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meloformer.shards.chunks import (
    FILES_PER_CHUNK,
    Chunk,
    ChunkResult,
    convert_chunk,
    convert_chunks,
    cut_chunks,
)
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.spill import piece_source, read_piece, rejected_lines


def file_of(name: str, data: bytes) -> Any:
    return SimpleNamespace(name=name, read=partial(bytes, data))


def file_that(name: str, act: Any) -> Any:
    return SimpleNamespace(name=name, read=act)


def rejections(spill: Path, num_chunks: int) -> dict[str, str]:
    entries = [json.loads(line) for line in rejected_lines(spill, num_chunks)]
    return {entry["path"]: entry["reason"] for entry in entries}


def convert(chunk: Chunk, spill: Path, time_limit_seconds: float = 60.0) -> ChunkResult:
    return convert_chunk(
        chunk, spill=spill, settings=ShardSettings(), time_limit_seconds=time_limit_seconds
    )


def test_chunks_hold_every_file_once_in_order() -> None:
    files = [file_of(str(number), b"") for number in range(2 * FILES_PER_CHUNK + 3)]
    chunks = list(cut_chunks(files))
    assert [chunk.number for chunk in chunks] == [0, 1, 2]
    assert [file for chunk in chunks for file in chunk.files] == files


def test_a_piece_comes_back_from_the_spill_as_it_went_in(
    chorales: list[bytes], tmp_path: Path
) -> None:
    files = tuple(file_of(f"{number}.mid", data) for number, data in enumerate(chorales))
    result = convert(Chunk(0, files), tmp_path)
    assert len(result.records) == len(chorales)
    assert result.counts["notes"] >= result.records["num_notes"].sum()
    for number, record in enumerate(result.records):
        piece = read_piece(tmp_path, record)
        facts = json.loads(piece.facts_json)
        assert piece_source(tmp_path, record) == facts["source"] == f"{number}.mid"
        assert piece.bar_starts[0] < piece.bar_starts[-1] == piece.num_tokens - 1
        assert np.array_equal(piece.bar_starts, np.sort(piece.bar_starts))
        assert facts["num_bars"] == len(piece.bar_starts) - 1
        assert facts["num_tokens"] == piece.num_tokens


def test_what_is_wrong_with_a_file_is_a_reason_and_the_others_pass(
    chorales: list[bytes], tmp_path: Path
) -> None:
    files = (
        file_of("broken.mid", chorales[0][:100]),
        file_of("good.mid", chorales[0]),
        file_that("slow.mid", partial(time.sleep, 600)),
        file_that("our fault.mid", partial(int, "no number")),
    )
    result = convert(Chunk(0, files), tmp_path, time_limit_seconds=0.2)
    assert len(result.records) == 1
    assert rejections(tmp_path, 1) == {
        "broken.mid": "unreadable",
        "slow.mid": "timeout",
        "our fault.mid": "internal_error",
    }
    assert result.rejected == {"unreadable": 1, "timeout": 1, "internal_error": 1}


def test_a_fault_of_ours_is_written_down_with_its_place(tmp_path: Path) -> None:
    convert(Chunk(0, (file_that("x.mid", partial(int, "no number")),)), tmp_path)
    [line] = rejected_lines(tmp_path, 1)
    assert "ValueError" in json.loads(line)["detail"]
    assert "chunks.py:" in json.loads(line)["detail"]


def test_files_that_kill_or_hang_their_worker_are_named_and_cost_nothing_else(
    chorales: list[bytes], tmp_path: Path
) -> None:
    good = [file_of(f"good {number}.mid", data) for number, data in enumerate(chorales)]
    chunks = [
        Chunk(0, (good[0], file_that("dies.mid", partial(os._exit, 3)), good[1])),
        Chunk(1, tuple(good[2:6])),
        # Native code that never comes back is deaf to the alarm.
        Chunk(2, (file_that("hangs.mid", partial(sum, range(10**15))), good[6])),
        Chunk(3, tuple(good[7:])),
    ]
    results = sorted(
        convert_chunks(chunks, tmp_path, ShardSettings(), num_workers=2, time_limit_seconds=1.0),
        key=lambda result: result.number,
    )
    assert [result.number for result in results] == [0, 1, 2, 3]
    assert [len(result.records) for result in results] == [2, 4, 1, 5]
    assert rejections(tmp_path, 4) == {"dies.mid": "crashed", "hangs.mid": "crashed"}
    sources = {piece_source(tmp_path, record) for result in results for record in result.records}
    assert sources == {file.name for file in good}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_converts_the_same(
    chorales: list[bytes], tmp_path: Path, num_workers: int
) -> None:
    files = [file_of(f"{number}.mid", data) for number, data in enumerate(chorales)]
    expected = convert(Chunk(0, tuple(files)), tmp_path).records
    chunks = cut_chunks(files, files_per_chunk=5)
    results = convert_chunks(chunks, tmp_path, ShardSettings(), num_workers=num_workers)
    found = np.concatenate([r.records for r in sorted(results, key=lambda result: result.number)])
    assert found["key"].tolist() == expected["key"].tolist()
