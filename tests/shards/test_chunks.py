"""Files that misbehave. They are built of the standard library so that a worker can load them."""

import faulthandler
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meloformer.shards.chunks import (
    FILES_PER_CHUNK,
    Chunk,
    convert_chunk,
    convert_chunks,
    cut_chunks,
)
from meloformer.shards.guard import FileLimits
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.pool import local_engine
from meloformer.shards.sources import MidiFile
from meloformer.shards.sources.files import CarriedFile, RefusedFile
from meloformer.shards.spill import ChunkTable, load_chunk, piece_facts, read_piece


def file_of(name: str, data: bytes) -> Any:
    return SimpleNamespace(name=name, read=partial(bytes, data), facts={})


def file_that(name: str, act: Any) -> Any:
    return SimpleNamespace(name=name, read=act, facts={})


def tables_of(spill: Path, num_chunks: int) -> list[ChunkTable]:
    tables = [load_chunk(spill, number) for number in range(num_chunks)]
    return [table for table in tables if table is not None]


def rejections(spill: Path, num_chunks: int) -> dict[str, str]:
    lines = [line for table in tables_of(spill, num_chunks) for line in table.rejected_lines]
    return {entry["path"]: entry["reason"] for entry in map(json.loads, lines)}


def convert(files: tuple[MidiFile, ...], spill: Path, **limits: Any) -> ChunkTable:
    chunk = Chunk(0, files)
    number = convert_chunk(
        chunk, spill=spill, settings=ShardSettings(), limits=FileLimits(**limits)
    )
    assert number == len(files)
    [table] = tables_of(spill, 1)
    return table


def convert_all(
    chunks: list[Chunk], spill: Path, num_workers: int, **limits: Any
) -> tuple[list[ChunkTable], int]:
    """Tables of all chunks, and how many files were said to be done."""
    done: list[int] = []
    num_chunks = convert_chunks(
        chunks,
        spill,
        ShardSettings(),
        run=local_engine(num_workers),
        limits=FileLimits(**limits),
        on_found=done.append,
        on_done=done.append,
    )
    assert num_chunks == len(chunks)
    return tables_of(spill, num_chunks), sum(done)


def test_chunks_hold_every_file_once_in_order() -> None:
    files = [file_of(str(number), b"") for number in range(2 * FILES_PER_CHUNK + 3)]
    chunks = list(cut_chunks(files))
    assert [chunk.number for chunk in chunks] == [0, 1, 2]
    assert [file for chunk in chunks for file in chunk.files] == files


def test_chunks_end_where_their_files_carry_too_many_bytes() -> None:
    files = [CarriedFile(str(number), bytes(10)) for number in range(5)]
    sizes = [len(chunk.files) for chunk in cut_chunks(files, bytes_per_chunk=15)]
    assert sizes == [2, 2, 1]


def sources(spill: Path, tables: Sequence[ChunkTable]) -> set[str]:
    """Files that the pieces came from."""
    return {piece_facts(spill, record)["source"] for table in tables for record in table.records}


def test_a_piece_comes_back_from_the_spill_as_it_went_in(
    chorales: list[bytes], tmp_path: Path
) -> None:
    files = tuple(file_of(f"{number}.mid", data) for number, data in enumerate(chorales))
    table = convert(files, tmp_path)
    assert len(table.records) == len(table.signatures) == len(chorales)
    assert table.counts["notes"] >= table.records["num_notes"].sum()
    for number, record in enumerate(table.records):
        piece = read_piece(tmp_path, record, {"cluster": "x"})
        facts = json.loads(piece.facts_json)
        assert facts == piece_facts(tmp_path, record) | {"cluster": "x"}
        assert facts["source"] == f"{number}.mid"
        assert piece.bar_starts[0] < piece.bar_starts[-1] == piece.num_tokens - 1
        assert np.array_equal(piece.bar_starts, np.sort(piece.bar_starts))
        assert facts["num_bars"] == len(piece.bar_starts) - 1
        assert facts["num_tokens"] == piece.num_tokens


def test_files_too_big_to_be_held_together_are_converted_all_the_same(
    chorales: list[bytes], tmp_path: Path
) -> None:
    # What follows the last track does not matter.
    big = [data + bytes(400_000 * (number % 3)) for number, data in enumerate(chorales)]
    for name, all_data in (("small", chorales), ("big", big)):
        files = [file_of(f"{number}.mid", data) for number, data in enumerate(all_data)]
        files.insert(3, RefusedFile("refused.mid", "too_big"))
        (tmp_path / name).mkdir()
        table = convert(tuple(files), tmp_path / name)
        assert table.rejected == {"too_big": 1}
        assert len(table.records) == len(chorales)
    assert (tmp_path / "small/00000000.pieces").read_bytes() == (
        tmp_path / "big/00000000.pieces"
    ).read_bytes()


def exec_of(code: str) -> Any:
    """What a worker, which cannot load this file, does instead of reading."""
    return partial(exec, code, {})


# A limit that no busy machine takes from a good file, and files whose own time is up sooner.
LONG_SECONDS = 3600.0
SLOW = exec_of("""
import signal, time
signal.setitimer(signal.ITIMER_REAL, 0.1)
time.sleep(3600)
""")
# Native code that never comes back is deaf to the alarm.
DEAF = exec_of("""
import faulthandler, os
faulthandler.dump_traceback_later(0.1, exit=True, file=open(os.devnull, "w"))
sum(range(10**15))
""")


def test_what_is_wrong_with_a_file_is_a_reason_and_the_others_pass(
    chorales: list[bytes], tmp_path: Path
) -> None:
    files = (
        file_of("broken.mid", b"MThd" + bytes(20)),
        file_of("good.mid", chorales[0]),
        file_that("slow.mid", SLOW),
        file_that("hungry.mid", partial(bytes, 3 << 30)),
        file_that("our fault.mid", partial(int, "no number")),
    )
    table = convert(files, tmp_path, file_seconds=LONG_SECONDS, file_megabytes=500)
    assert len(table.records) == 1
    expected = {
        "slow.mid": "timeout",
        "hungry.mid": "too_much_memory",
        "our fault.mid": "internal_error",
    }
    found = rejections(tmp_path, 1)
    assert found.keys() == expected.keys() | {"broken.mid"}
    assert {name: found[name] for name in expected} == expected
    assert table.rejected.total() == len(found)


def test_files_that_together_take_too_much_memory_have_each_all_of_it(tmp_path: Path) -> None:
    files = tuple(file_that(f"{number}.mid", partial(bytes, 300 << 20)) for number in range(3))
    table = convert(files, tmp_path, file_megabytes=500)
    assert table.rejected == {"file_too_big": 3}


def test_a_file_that_takes_longer_than_it_may_is_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It would end this process, if that is not let run for twice so short a time.
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    files = (file_that("slow.mid", partial(time.sleep, 3600)),)
    table = convert(files, tmp_path, file_seconds=0.1)
    assert table.rejected == {"timeout": 1}


def test_a_fault_of_ours_is_written_down_with_its_place(tmp_path: Path) -> None:
    table = convert((file_that("x.mid", partial(int, "no number")),), tmp_path)
    [line] = table.rejected_lines
    assert "ValueError" in json.loads(line)["detail"]
    assert "chunks.py:" in json.loads(line)["detail"]


def test_files_that_kill_or_hang_their_worker_are_named_and_cost_nothing_else(
    chorales: list[bytes], tmp_path: Path
) -> None:
    good = [file_of(f"good {number}.mid", data) for number, data in enumerate(chorales)]
    chunks = [
        Chunk(0, (good[0], file_that("dies.mid", partial(os._exit, 3)), good[1])),
        Chunk(1, tuple(good[2:6])),
        Chunk(2, (file_that("hangs.mid", DEAF), good[6])),
        Chunk(3, tuple(good[7:])),
    ]
    tables, num_done = convert_all(chunks, tmp_path, 2, file_seconds=LONG_SECONDS)
    assert num_done == len(good) + 2
    assert [len(table.records) for table in tables] == [2, 4, 1, 5]
    assert rejections(tmp_path, 4) == {"dies.mid": "crashed", "hangs.mid": "crashed"}
    assert sources(tmp_path, tables) == {file.name for file in good}


def test_a_chunk_that_is_done_is_not_done_again_unless_its_files_are_others(
    chorales: list[bytes], tmp_path: Path
) -> None:
    good = [file_of(f"{number}.mid", data) for number, data in enumerate(chorales[:4])]
    chunks = [Chunk(0, tuple(good[:2])), Chunk(1, tuple(good[2:]))]
    convert_all(chunks, tmp_path, 1)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    tables, num_done = convert_all(chunks, tmp_path, 1)
    assert num_done == 4
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == before
    spilt = tmp_path / "00000000.pieces"
    whole = spilt.read_bytes()
    spilt.write_bytes(whole[:-9] + bytes(9))  # what a crash of the machine may leave
    convert_all(chunks, tmp_path, 1)
    assert spilt.read_bytes() == whole
    other = [chunks[0], Chunk(1, (good[0],))]
    tables, num_done = convert_all(other, tmp_path, 1)
    assert num_done == 3
    assert sources(tmp_path, tables[1:]) == {"0.mid"}


@pytest.mark.parametrize("num_kept", [0, 100])
def test_a_chunk_that_was_cut_short_is_done_again(
    chorales: list[bytes], tmp_path: Path, num_kept: int
) -> None:
    good = [file_of(f"{number}.mid", data) for number, data in enumerate(chorales[:2])]
    for suffix in ("chunk", "pieces"):
        convert_all([Chunk(0, tuple(good))], tmp_path, 1)
        [path] = tmp_path.glob(f"*.{suffix}")
        os.truncate(path, num_kept)
        assert load_chunk(tmp_path, 0) is None
        tables, _ = convert_all([Chunk(0, tuple(good))], tmp_path, 1)
        assert len(tables[0].records) == 2


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_converts_the_same(
    chorales: list[bytes], tmp_path: Path, num_workers: int
) -> None:
    files = [file_of(f"{number}.mid", data) for number, data in enumerate(chorales)]
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    expected = convert(tuple(files), tmp_path / "one").records["key"].tolist()
    chunks = list(cut_chunks(files, files_per_chunk=5))
    tables, _ = convert_all(chunks, tmp_path / "many", num_workers)
    assert [key for table in tables for key in table.records["key"].tolist()] == expected
