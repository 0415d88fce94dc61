"""Sorting on disk against sorting in memory."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.shards.bucket_sort import sort_by_hash

HEX = np.dtype([("key", "S24"), ("place", np.int64)])
NUMBER = np.dtype([("key", np.uint64), ("place", np.int64)])


def rows_of(dtype: np.dtype, num_rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    # Few values, so that many are equal.
    values = random.integers(0, 2**64, max(num_rows // 2, 1), dtype=np.uint64)
    rows = np.zeros(num_rows, dtype)
    chosen = random.choice(values, num_rows)
    rows["key"] = [f"{value:016x}".encode() for value in chosen] if dtype is HEX else chosen
    rows["place"] = np.arange(num_rows)
    return rows


@pytest.mark.parametrize("dtype", [HEX, NUMBER])
@given(num_rows=st.integers(0, 200), per_bucket=st.integers(1, 64), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_buckets_one_after_the_other_are_the_stable_sort_of_all(
    tmp_path_factory, dtype, num_rows, per_bucket, seed
):
    rows = rows_of(dtype, num_rows, seed)
    batches = np.array_split(rows, 3)
    folder = tmp_path_factory.mktemp("sort") / "buckets"
    found = [np.zeros(0, dtype)]
    found += sort_by_hash(batches, "key", folder, num_rows, rows_per_bucket=per_bucket)
    expected = rows[np.argsort(rows["key"], kind="stable")]
    assert np.array_equal(np.concatenate(found), expected)
    assert not folder.exists()


def test_what_a_killed_sort_left_is_not_sorted_in(tmp_path: Path):
    rows = rows_of(NUMBER, 50, 0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0000").write_bytes(rows.tobytes())
    found = np.concatenate(list(sort_by_hash([rows], "key", tmp_path / "b", 50)))
    assert len(found) == 50
