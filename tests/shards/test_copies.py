"""Which of equal pieces stays."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.shards.copies import KNOWN, SIGNED_RECORD, read_rows, separate_copies
from meloformer.shards.fingerprints import NUM_HASHES
from meloformer.shards.spill import RECORD

PAIR = np.dtype((RECORD, (2,)))


def pieces(keys: list[int], *, chunk: int) -> np.ndarray:
    """SIGNED_RECORD of a chunk, a key for each number."""
    rows = np.zeros(len(keys), SIGNED_RECORD)
    rows["key"] = [f"{key * 2654435761 % 2**32:08x}{key:016x}".encode() for key in keys]
    rows["chunk"], rows["row"] = chunk, np.arange(len(keys))
    rows["signature"] = np.array(keys, np.uint32).reshape(-1, 1)
    return rows


@given(
    known=st.sets(st.integers(0, 30), max_size=8),
    chunks=st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=5),
    per_bucket=st.integers(1, 20),
)
@settings(max_examples=60, deadline=None)
def test_the_known_one_stays_else_the_first_of_the_input(
    tmp_path_factory, known, chunks, per_bucket
):
    batches = [pieces(sorted(known), chunk=KNOWN)]
    batches += [pieces(keys, chunk=number) for number, keys in enumerate(chunks)]
    folder: Path = tmp_path_factory.mktemp("copies")
    total = sum(map(len, batches))
    kept = separate_copies(batches, total, folder, rows_per_bucket=per_bucket)

    first: dict[int, tuple[int, int]] = {key: (KNOWN, row) for row, key in enumerate(sorted(known))}
    expected_copies = {}
    for chunk, keys in enumerate(chunks):
        for row, key in enumerate(keys):
            if key in first:
                expected_copies[chunk, row] = first[key]
            else:
                first[key] = (chunk, row)
    records = np.concatenate([np.zeros(0, RECORD), *read_rows(kept.records, RECORD)])
    places = {(int(r["chunk"]), int(r["row"])) for r in records}
    assert places == {place for place in first.values() if place[0] != KNOWN}
    assert records["key"].tolist() == sorted(records["key"].tolist())
    assert kept.num_pieces == len(records)

    signatures = np.fromfile(kept.signatures, "<u4").reshape(-1, NUM_HASHES)
    assert [int(r["key"][8:], 16) for r in records] == signatures[:, 0].tolist()

    pairs = [p for block in read_rows(kept.copies, PAIR) for p in block.reshape(-1, 2)]
    found = {
        (int(copy["chunk"]), int(copy["row"])): (int(of["chunk"]), int(of["row"]))
        for copy, of in pairs
    }
    assert found == expected_copies
    assert kept.num_copies == len(expected_copies)
