"""Ranks and data workers of a host read remote shards within one budget of memory and disk."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from meloformer.shards.manifest import ShardEntry
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.shards.tars import COPY_RECORD, StoredPiece, ids_to_npy, shard_stem, write_shard
from tests.shards.faulty_server import FaultyServer

ROOT = Path(__file__).resolve().parents[2]
NUM_RANKS, NUM_WORKERS = 2, 4
NUM_SHARDS, NUM_PIECES = 40, 120
NUM_STEPS = 40

# What the processes of a host may take together, next to what a rank took before it read: a worker
# for its own data, a rank for batches under way and the plan, and the shards once for all.
WORKER_BYTES, RANK_BYTES = 24 << 20, 32 << 20


@pytest.fixture
def many_shards(chorale_shards: Path, tmp_path: Path) -> Path:
    """Chorales again and again, under other names, in many shards."""
    chorales = ShardFolder.open(chorale_shards)
    folder = tmp_path / "shards"
    pieces = list(_stored(chorales.split("train")))
    entries: dict[str, tuple[ShardEntry, ...]] = {"test": ()}
    for split, num_shards in (("train", NUM_SHARDS), ("valid", 1)):
        made = []
        for shard in range(num_shards):
            named = [
                replace(pieces[number % len(pieces)], key=f"{shard * NUM_PIECES + number:024x}")
                for number in range(NUM_PIECES)
            ]
            copies = np.zeros(NUM_PIECES, COPY_RECORD)
            made.append(write_shard(folder, f"{split}/{shard_stem(shard)}", named, copies))
        entries[split] = tuple(made)
    num_pieces = (NUM_SHARDS + 1) * NUM_PIECES
    manifest = chorales.manifest
    replace(manifest, splits=entries, num_in=num_pieces, num_duplicates=0, rejected={}).save(folder)
    return folder


def _stored(split: SplitIndex) -> Iterator[StoredPiece]:
    for piece in range(split.num_pieces):
        ids = split.read(piece)
        yield StoredPiece(
            key="",
            ids_npy=ids_to_npy(ids),
            facts_json=b"{}",
            num_tokens=len(ids),
            num_notes=split.sizes(piece).notes,
            bar_starts=np.array(split.bar_starts(piece)),
        )


def kilobytes(lines: str, name: str) -> int:
    """Sum of one field over the text of smaps or smaps_rollup."""
    return sum(int(line.split()[1]) for line in lines.splitlines() if line.startswith(f"{name}:"))


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [process for child in map(int, text.split()) for process in (child, *children(child))]


def pss_bytes(pids: list[int]) -> int:
    texts = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(kilobytes(text, "Pss") for text in texts) << 10


def mapped_bytes(pids: list[int], folder: Path, field: str) -> int:
    """Sum of a field over what processes have mapped of the files in a folder."""
    total = 0
    for pid in pids:
        is_ours = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if line[0] in "0123456789abcdef" and ":" not in line.split()[0]:
                is_ours = str(folder) in line
            elif is_ours and line.startswith(f"{field}:"):
                total += int(line.split()[1]) << 10
    return total


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup"
)
def test_four_workers_of_two_ranks_stay_within_the_budget(
    many_shards: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with FaultyServer(many_shards) as server:
        numbers = [[rank, NUM_RANKS, NUM_WORKERS, NUM_STEPS] for rank in range(NUM_RANKS)]
        ranks = [
            subprocess.Popen(
                [
                    sys.executable,
                    "tests/shards/stream_rank.py",
                    server.url,
                    cache,
                    *map(str, given),
                ],
                cwd=ROOT,
                env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for given in numbers
        ]
        try:
            said = [rank.stdout.readline() for rank in ranks]
            assert said == ["opened\n"] * NUM_RANKS
            before = pss_bytes([rank.pid for rank in ranks])
            for rank in ranks:
                print(file=rank.stdin, flush=True)
            said = [rank.stdout.readline() for rank in ranks]
            assert all(line.startswith("read") for line in said)
            pids = [pid for rank in ranks for pid in (rank.pid, *children(rank.pid))]
            after = pss_bytes(pids)
            shards_once = sum(path.stat().st_size for path in cache.iterdir())
            shared = mapped_bytes(pids, cache, "Pss")
            alone = mapped_bytes(pids, cache, "Rss")
        finally:
            for rank in ranks:
                rank.communicate(timeout=60)
    assert len(pids) >= NUM_RANKS * (1 + NUM_WORKERS)
    assert shared <= shards_once < alone, "the shards lie in memory once, for all processes"
    budget = before + NUM_RANKS * (RANK_BYTES + NUM_WORKERS * WORKER_BYTES) + shards_once
    assert after <= budget, f"PSS {before} before, {after} after, {shared} of it shards"
    wanted = [file for file, _ in server.requests if file.endswith(".tar")]
    assert len(wanted) == len(set(wanted)), "one process of the host fetches a shard for all"
