"""Splits: near copies together, known pieces where they are."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.shards.copies import SIGNED_RECORD, read_rows, separate_copies
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.known import KNOWN_RECORD
from meloformer.shards.manifest import SPLITS, ShardSettings
from meloformer.shards.placing import PLACED_RECORD, Placed, place_pieces
from meloformer.shards.spill import RECORD

SETTINGS = ShardSettings(valid_share=0.3, test_share=0.3)


def key_of(number: int) -> bytes:
    return f"{number * 2654435761 % 2**32:08x}{number:016x}".encode()


def tune_of(number: int) -> int:
    return number * 0x9E3779B97F4A7C15 % 2**64


NUM_FAMILIES = 4


def signature_of(families: list[int], number: int) -> np.ndarray:
    """A quarter of the hashes for each family, shared by its pieces; the rest its own."""
    hashes = np.random.default_rng(number).integers(0, 2**32, NUM_HASHES, dtype=np.uint32)
    for family in families:
        quarter = np.array_split(np.arange(NUM_HASHES), NUM_FAMILIES)[family % NUM_FAMILIES]
        random = np.random.default_rng([7, family])
        hashes[quarter] = random.integers(0, 2**32, len(quarter), dtype=np.uint32)
    return hashes


class KnownForTest:
    """Known pieces from arrays instead of from a folder."""

    def __init__(self, numbers: list[int], families: list[list[int]], splits: list[int]) -> None:
        self.numbers, self.families, self.splits = numbers, families, splits
        self.num_pieces = len(numbers)

    def write(self, records: Path, signatures: Path) -> None:
        rows = np.zeros(self.num_pieces, KNOWN_RECORD)
        rows["key"] = [key_of(n) for n in self.numbers]
        rows["cluster"] = rows["key"]
        rows["tune"] = [tune_of(n) for n in self.numbers]
        rows["split"] = self.splits
        records.write_bytes(rows.tobytes())
        rows = [signature_of(f, n) for f, n in zip(self.families, self.numbers, strict=True)]
        signatures.write_bytes(np.array(rows, np.uint32).reshape(-1, NUM_HASHES).tobytes())


def place(folder: Path, new: dict[int, list[int]], known: KnownForTest) -> Placed:
    rows = np.zeros(len(new), SIGNED_RECORD)
    rows["key"] = [key_of(n) for n in new]
    rows["tune"] = [tune_of(n) for n in new]
    rows["row"] = np.arange(len(new))
    rows["signature"] = [signature_of(f, n) for n, f in new.items()]
    kept = separate_copies([rows], len(rows), folder)
    return place_pieces(kept, known, SETTINGS, folder)


def found_in(placed: Placed) -> dict[bytes, tuple[str, bytes]]:
    """Split and cluster of each new piece by its key."""
    return {
        record["key"]: (split, record["cluster"])
        for split in SPLITS
        for block in read_rows(placed.records(split), PLACED_RECORD)
        for record in block
    }


@given(
    known=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=5),
    new=st.lists(
        st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True), min_size=1, max_size=12
    ),
)
@settings(max_examples=60, deadline=None)
def test_no_cluster_crosses_the_split_and_nothing_is_lost(tmp_path_factory, known, new):
    folder: Path = tmp_path_factory.mktemp("place")
    split_of_family = {family: split for family, split in known}
    families = [[family] for family, _ in known]
    splits = [split_of_family[family] for family, _ in known]
    numbers = list(range(100, 100 + len(known)))
    pieces = {number: families for number, families in enumerate(new, start=1000)}
    placed = place(folder, pieces, KnownForTest(numbers, families, splits))
    found = found_in(placed)

    left_out = {bytes(r["key"]) for block in read_rows(placed.joining, RECORD) for r in block}
    assert len(found) + placed.num_joining == len(pieces)
    assert left_out.isdisjoint(found)
    assert left_out | found.keys() == {key_of(n) for n in pieces}
    for number, own in pieces.items():
        if key_of(number) not in found:
            continue
        split, _ = found[key_of(number)]
        # A piece stands where every known piece that it resembles stands.
        for family in own:
            if family in split_of_family:
                assert SPLITS[split_of_family[family]] == split
        for other, others in pieces.items():
            if set(own) & set(others) and key_of(other) in found:
                assert found[key_of(other)][0] == split
    # Only a piece that stands between two splits is left out.
    if len(set(splits)) < 2:
        assert not left_out


def test_a_piece_that_would_join_two_splits_is_left_out(tmp_path: Path):
    known = KnownForTest([1, 2], [[1], [2]], [0, 1])
    placed = place(tmp_path, {10: [1], 11: [2], 12: [1, 2], 13: [3]}, known)
    found = found_in(placed)
    assert placed.num_joining == 1
    assert key_of(12) not in found
    assert found[key_of(10)] == ("train", key_of(1))
    assert found[key_of(11)] == ("valid", key_of(2))
    assert found[key_of(13)][1] == key_of(13)
    assert (placed.num_clusters, placed.num_near_copies) == (2, 4)


def test_a_large_cluster_is_as_likely_in_each_split_as_a_lone_piece(tmp_path: Path):
    """The split of 300 clusters of 5 pieces: shares as set, though the smallest hash decides."""
    pieces = {number: [number // 5] for number in range(1500)}
    placed = place(tmp_path, pieces, KnownForTest([], [], []))
    shares = np.array(placed.num_pieces) / 1500
    assert np.abs(shares - [0.4, 0.3, 0.3]).max() < 0.1
