import pytest

from meloformer.errors import ConfigError
from meloformer.training.schedule import ScheduleConfig, learning_rate, resolve_warmup_steps


def test_the_rate_rises_to_the_top_falls_all_the_way_and_ends_at_the_ratio() -> None:
    config = ScheduleConfig(learning_rate=2.0, warmup_steps=20, min_learning_rate_ratio=0.25)
    rates = [learning_rate(step, 200, config) for step in range(1, 201)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[19] == 2.0
    assert rates[:20] == sorted(rates[:20])
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert rates[-1] == pytest.approx(0.5)


def test_halfway_between_warmup_and_end_the_rate_is_halfway_between_top_and_bottom() -> None:
    config = ScheduleConfig(learning_rate=1.0, warmup_steps=10, min_learning_rate_ratio=0.2)
    assert learning_rate(60, 110, config) == pytest.approx(0.6)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_run_of_a_few_steps_has_a_positive_rate_at_every_step(num_steps: int) -> None:
    rates = [learning_rate(step, num_steps, ScheduleConfig()) for step in range(1, num_steps + 1)]
    assert min(rates) > 0


def test_an_ungiven_warmup_fits_into_the_run() -> None:
    assert resolve_warmup_steps(50, ScheduleConfig()) == 5
    assert resolve_warmup_steps(10**6, ScheduleConfig()) == 500


def test_a_warmup_longer_than_the_run_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"300.*200"):
        learning_rate(1, 200, ScheduleConfig(warmup_steps=300))


@pytest.mark.parametrize(
    "values", [{"learning_rate": 0.0}, {"warmup_steps": -1}, {"min_learning_rate_ratio": 1.5}]
)
def test_impossible_schedules_are_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ScheduleConfig(**values)
