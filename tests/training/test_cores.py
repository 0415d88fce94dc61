"""Cores at hand: the quota of a container counts, in both versions of control groups."""

import os
from pathlib import Path

import pytest

from meloformer.training.cores import cores_at_hand


@pytest.fixture(autouse=True)
def large_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(128)), raising=False)


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("400000 100000", 4), ("50000 100000", 1), ("max 100000", 128), ("99900000 100000", 128)],
)
def test_a_container_has_the_cores_that_it_is_granted(
    limit: str, cores: int, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert cores_at_hand(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("650000", 6), ("-1", 128)])
def test_version_1_has_quota_and_period_in_two_files(
    quota: str, cores: int, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores_at_hand(tmp_path) == cores


def test_where_nothing_is_limited_all_cores_count(tmp_path: Path) -> None:
    assert cores_at_hand(tmp_path) == 128
