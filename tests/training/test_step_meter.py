"""Who is slow, and how busy the device is."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from meloformer.training import gpu_monitor
from meloformer.training.gpu_monitor import GpuMonitor
from meloformer.training.ranks import Ranks
from meloformer.training.step import Clock, count_step
from meloformer.training.step_meter import spread
from tests.training.launching import TIME_LIMIT_SECONDS


def test_the_spread_names_the_slowest_rank_and_is_silent_before_the_first_step() -> None:
    found = spread([1.0, 4.0, 2.0, 1.5])
    assert found == {
        "rank_seconds_min": 1.0,
        "rank_seconds_median": 1.75,
        "rank_seconds_max": 4.0,
        "slowest_rank": 1,
    }
    assert set(spread([0.0, 0.0]).values()) == {None}


def test_a_single_rank_is_not_called_the_slowest() -> None:
    assert set(spread([1.5]).values()) == {None}


def test_every_rank_learns_every_ranks_seconds_with_the_counts() -> None:
    class Adding(Ranks):
        """Stands for ranks that follow each other: what one adds, the next finds."""

        def sum_tensor(self, value: torch.Tensor) -> torch.Tensor:
            sums.append(value)
            return torch.stack(sums).sum(0)

    sums: list[torch.Tensor] = []
    cpu = torch.device("cpu")
    for rank, own_seconds in enumerate([0.5, 2.0, 1.0]):
        ranks = Adding(rank=rank, local_rank=rank, world_size=3, device=cpu)
        counts = count_step([], 0.3 * rank, ranks, own_seconds)
    assert counts.rank_seconds == (0.5, 2.0, 1.0)
    assert counts.wait_seconds == pytest.approx(0.3)


def test_a_rank_spends_on_its_own_what_it_waits_and_its_forward_passes_take() -> None:
    def slow_stream() -> Iterator[int]:
        while True:
            time.sleep(0.02)
            yield 1

    clock, stream = Clock(), slow_stream()
    with clock.forward():
        time.sleep(0.5)
    clock.pause()  # that was a warm-up
    clock.wait_for(stream)
    for _ in range(2):
        with clock.forward():
            time.sleep(0.02)
    time.sleep(0.05)  # waiting for the others
    clock.lap()
    assert 0.06 <= clock.own_seconds <= clock.step_seconds - 0.05
    clock.wait_for(stream)
    clock.lap()
    assert clock.own_seconds == clock.wait_seconds, "no forward pass is counted twice"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_forward_passes_on_a_gpu_are_timed_by_the_device() -> None:
    device = torch.device("cuda")
    clock, x = Clock(device), torch.randn(4096, 4096, device=device)
    with clock.forward():
        for _ in range(100):
            x = x @ x / 64
    queued = time.perf_counter()
    float(x.sum())  # what the loop does before it reports
    waited = time.perf_counter() - queued
    clock.lap()
    assert clock.own_seconds > 0.5 * waited, "more than the time that queueing takes"


def test_a_step_gets_the_mean_of_its_samples_and_the_newest_where_it_had_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures, asked = iter([0.2, 0.6, None]), threading.Event()

    def sample() -> float | None:
        figure = next(figures)
        if figure is None:
            asked.set()
        return figure

    monkeypatch.setattr(gpu_monitor, "SECONDS_PER_SAMPLE", 0.0)
    monitor = GpuMonitor(sample)
    assert asked.wait(TIME_LIMIT_SECONDS)
    assert monitor.take() == pytest.approx(0.4)
    assert monitor.take() == pytest.approx(0.4), "a step shorter than a second"
    monitor._thread.join(TIME_LIMIT_SECONDS)
    assert not monitor._thread.is_alive()


def test_where_nobody_can_say_how_busy_the_gpu_is_there_is_no_figure_and_no_thread() -> None:
    monitor = GpuMonitor(lambda: None)
    monitor._thread.join(TIME_LIMIT_SECONDS)
    assert not monitor._thread.is_alive()
    assert monitor.take() is None
    monitor.close()
