"""Ranks that meet in a store in which an earlier start of the run has met."""

import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from meloformer.errors import TrainingError
from meloformer.training import meeting
from meloformer.training.meeting import meet
from tests.training.launching import TIME_LIMIT_SECONDS

LIMIT = timedelta(seconds=TIME_LIMIT_SECONDS)


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)


def clients(store: dist.TCPStore, number: int) -> list[dist.TCPStore]:
    return [
        dist.TCPStore("127.0.0.1", store.port, wait_for_workers=False, timeout=LIMIT)
        for _ in range(number)
    ]


def start(store: dist.TCPStore, world_size: int, order: list[int]) -> list[dist.Store]:
    """The stores of the ranks, which come in some order."""
    with ThreadPoolExecutor(world_size) as pool:
        connections = clients(store, world_size)
        futures = {r: pool.submit(meet, connections[r], r, world_size, LIMIT) for r in order}
        return [futures[rank].result() for rank in range(world_size)]


def test_a_start_sees_its_own_ranks_and_nothing_of_the_one_before(store: dist.TCPStore) -> None:
    first = start(store, 3, [0, 1, 2])
    first[0].set("address of rank 0", "a process that has ended")
    assert first[2].get("address of rank 0") == b"a process that has ended"
    # The others come first, and find all that the first rank has left.
    second = start(store, 3, [2, 1, 0])
    assert not any(rank.check(["address of rank 0"]) for rank in second)
    second[0].set("address of rank 0", "a new one")
    assert [rank.get("address of rank 0") for rank in second[1:]] == [b"a new one"] * 2


def test_a_rank_that_ended_before_it_met_the_others_disturbs_no_later_start(
    store: dist.TCPStore,
) -> None:
    start(store, 2, [0, 1])
    with pytest.raises(TrainingError, match="the first rank did not come"):
        meet(clients(store, 1)[0], 1, 2, timedelta(seconds=0.2))
    with pytest.raises(TrainingError, match=r"rank\(s\) 1 did not come"):
        meet(clients(store, 1)[0], 0, 2, timedelta(seconds=0.2))
    found = start(store, 2, [1, 0])
    found[0].set("key", "value")
    assert found[1].get("key") == b"value"


def test_a_start_with_fewer_ranks_waits_for_no_rank_of_the_one_before(store: dist.TCPStore) -> None:
    start(store, 4, [0, 1, 2, 3])
    found = start(store, 2, [0, 1])
    found[1].set("key", "value")
    assert found[0].get("key") == b"value"


def test_who_is_told_to_stop_does_not_wait_long_for_a_rank_that_never_comes(
    store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "asked_to_stop", lambda: signal.SIGTERM)
    monkeypatch.setattr(meeting, "STOPPED_SECONDS", 0.2)
    for rank, whom in ((0, r"rank\(s\) 1"), (1, "the first rank")):
        with pytest.raises(TrainingError, match=f"^stopped by SIGTERM before .*: {whom} did not"):
            meet(clients(store, 1)[0], rank, 2, LIMIT)


def test_ranks_that_are_told_to_stop_meet_all_the_same(
    store: dist.TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "asked_to_stop", lambda: signal.SIGTERM)
    monkeypatch.setattr(meeting, "STOPPED_SECONDS", TIME_LIMIT_SECONDS)
    found = start(store, 2, [0, 1])
    found[0].set("key", "value")
    assert found[1].get("key") == b"value"
