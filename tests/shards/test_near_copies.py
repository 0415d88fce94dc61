import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from meloformer.errors import ShardError
from meloformer.evaluation.piece_edits import EDITS
from meloformer.evaluation.tune_overlap import tune_overlap
from meloformer.midi.read import read_midi
from meloformer.shards.clusters import UnionFind
from meloformer.shards.fingerprints import NO_FINGERPRINT, NUM_HASHES, signature
from meloformer.shards.near_copies import find_pairs

THRESHOLD = 0.25


def simulated(num: int, seed: int = 0) -> np.ndarray:
    """Signatures of unlike pieces: least values of many, and some that a tenth of them share."""
    random = np.random.default_rng(seed)
    hashes = (random.exponential(2**32 / 150, (num, NUM_HASHES))).astype(np.uint32)
    popular = random.random((num, NUM_HASHES)) < 0.05
    return np.where(popular, np.arange(NUM_HASHES, dtype=np.uint32), hashes)


def make_copies(hashes: np.ndarray, of: np.ndarray, to: np.ndarray, share: float) -> None:
    kept = np.random.default_rng(1).random((len(of), NUM_HASHES)) < share
    hashes[to] = np.where(kept, hashes[of], hashes[to])


def all_pairs(hashes: np.ndarray, folder: Path, **options: float) -> set[tuple[int, int]]:
    file = folder / "signatures"
    file.write_bytes(hashes.astype("<u4").tobytes())
    settings = {"threshold": THRESHOLD, **options}
    batches = list(find_pairs(file, len(hashes), folder / "scratch", **settings))  # type: ignore
    assert not list((folder / "scratch").iterdir())
    return {(int(a), int(b)) for batch in batches for a, b in batch}


def labels(hashes: np.ndarray, folder: Path, **options: float) -> np.ndarray:
    clusters = UnionFind(len(hashes))
    clusters.add(np.array(sorted(all_pairs(hashes, folder, **options)), np.int64).reshape(-1, 2))
    return clusters.labels()


def test_found_pairs_are_those_of_a_comparison_of_all_with_all(tmp_path: Path) -> None:
    hashes = simulated(600)
    make_copies(hashes, np.arange(0, 200), np.arange(200, 400), 0.5)
    equal = (hashes[:, None] == hashes[None]).mean(axis=2)
    expected = {(a, b) for a, b in np.argwhere(equal >= THRESHOLD).tolist() if a < b}
    found = all_pairs(hashes, tmp_path)
    assert len(expected) >= 200
    assert found <= expected
    assert len(found) >= 0.99 * len(expected)


def test_little_memory_finds_the_same_clusters_as_much(tmp_path: Path) -> None:
    hashes = simulated(3000)
    make_copies(hashes, np.arange(0, 1000), np.arange(1000, 2000), 0.6)
    hashes[2000:2900] = hashes[0]
    much = labels(hashes, tmp_path)
    for memory_bytes in (1 << 16, 1 << 18):
        assert np.array_equal(labels(hashes, tmp_path, memory_bytes=memory_bytes), much)


def test_the_same_file_gives_the_same_pairs_in_the_same_order(tmp_path: Path) -> None:
    hashes = simulated(2000)
    make_copies(hashes, np.arange(0, 500), np.arange(500, 1000), 0.4)
    file = tmp_path / "signatures"
    file.write_bytes(hashes.astype("<u4").tobytes())
    runs = [
        np.concatenate(list(find_pairs(file, 2000, tmp_path / "s", threshold=THRESHOLD)))
        for _ in range(2)
    ]
    assert np.array_equal(*runs)


def test_a_hundred_thousand_equal_signatures_cost_a_pair_each(tmp_path: Path) -> None:
    num = 100_000
    file = tmp_path / "signatures"
    file.write_bytes(np.repeat(simulated(1), num, axis=0).astype("<u4").tobytes())
    clusters, num_pairs = UnionFind(num), 0
    for pairs in find_pairs(file, num, tmp_path / "scratch", threshold=THRESHOLD):
        clusters.add(pairs)
        num_pairs += len(pairs)
    assert not clusters.labels().any()
    assert num_pairs < 2 * num


def test_a_band_that_thousands_share_costs_a_few_comparisons_each(tmp_path: Path) -> None:
    hashes = simulated(8_000)
    hashes[:, :2] = 7
    make_copies(hashes, np.arange(0, 1000), np.arange(1000, 2000), 0.5)
    found = all_pairs(hashes, tmp_path)
    assert len(found & {(n, n + 1000) for n in range(1000)}) >= 990


def test_pieces_without_fingerprints_are_nobodys_copies(tmp_path: Path) -> None:
    hashes = simulated(50)
    hashes[10:30] = NO_FINGERPRINT
    assert all_pairs(hashes, tmp_path) == set()


@pytest.mark.parametrize("num", [0, 1])
def test_none_or_one_piece_has_no_copies(tmp_path: Path, num: int) -> None:
    (tmp_path / "scratch").mkdir()
    assert all_pairs(simulated(num), tmp_path) == set()


def test_a_file_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    file = tmp_path / "signatures"
    file.write_bytes(b"\0" * 1000)
    with pytest.raises(ShardError, match=r"found 1,000 bytes, expected 5,120"):
        next(find_pairs(file, 10, tmp_path, threshold=THRESHOLD))


def test_the_threshold_is_met_by_exactly_its_share(tmp_path: Path) -> None:
    hashes = simulated(2)
    hashes[1] += 1
    hashes[1, :64] = hashes[0, :64]
    assert all_pairs(hashes, tmp_path, threshold=0.5) == {(0, 1)}
    assert all_pairs(hashes, tmp_path, threshold=0.51) == set()


def test_edited_chorales_are_found_and_different_ones_stay_apart(
    chorales: list[bytes], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    rows, owner = [], []
    pieces = [read_midi(data) for data in chorales]
    for number, piece in enumerate(pieces):
        copies = [edit(piece, random) for edit in EDITS.values() for _ in range(2)]
        for one in (piece, *copies):
            assert one is not None
            rows.append(signature(one))
            owner.append(number)
    found = labels(np.stack(rows), tmp_path)
    of_owner = [set(found[np.array(owner) == number].tolist()) for number in range(len(chorales))]
    assert sum(map(len, of_owner)) <= len(chorales) + 0.05 * len(rows)
    for number, mine in enumerate(of_owner):
        for other in range(number):
            if mine & of_owner[other]:
                assert tune_overlap(pieces[number], pieces[other]) >= 0.45


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from meloformer.shards.clusters import UnionFind
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.near_copies import find_pairs

folder, num = Path(sys.argv[1]), int(sys.argv[2])
random = np.random.default_rng(0)
with (folder / "signatures").open("wb") as file:
    for _ in range(num // 5000):
        hashes = random.exponential(2**32 / 150, (5000, NUM_HASHES)).astype(np.uint32)
        kept = random.random((1000, NUM_HASHES)) < 0.5
        hashes[1000:2000] = np.where(kept, hashes[:1000], hashes[1000:2000])
        file.write(hashes.astype("<u4").tobytes())
clusters = UnionFind(num)
pairs = find_pairs(
    folder / "signatures", num, folder / "scratch", threshold=0.25, memory_bytes=32 << 20
)
for batch in pairs:
    clusters.add(batch)
assert len(np.unique(clusters.labels())) < 0.81 * num
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_is_flat_from_ten_thousand_to_a_million_signatures(tmp_path: Path) -> None:
    peak_megabytes = []
    for num in (10_000, 1_000_000):
        folder = tmp_path / str(num)
        folder.mkdir()
        command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(folder), str(num)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peak_megabytes.append(int(output))
    assert peak_megabytes[1] < peak_megabytes[0] + 40, peak_megabytes
