"""--check_gradients: a right engine passes, a wrong one stops the run, and nothing has moved."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.training.partitionings_worker import PARTITIONINGS, PRECISIONS

pytestmark = pytest.mark.distributed


@pytest.fixture(
    scope="module",
    params=[
        "zero2 fp32 2",
        pytest.param("zero2 fp32 4", marks=pytest.mark.slow),
        *(
            pytest.param(f"{name} {precision} all", marks=pytest.mark.slow)
            for name in PARTITIONINGS
            for precision in PRECISIONS
        ),
    ],
)
def measured(
    request: pytest.FixtureRequest, measured_by_ranks: Callable[[str, int], dict[str, Any]]
) -> dict[str, Any]:
    """What `check_gradients_worker.measure` found; "all": on two ranks, launched together."""
    name, precision, ranks = request.param.split()
    if ranks == "all":
        return measured_by_ranks("partitionings_worker", 2)[f"{name} {precision}"]["check"]
    return measured_by_ranks("ranks_worker", int(ranks))["check"]


def test_a_right_gradient_passes_and_says_how_close_it_is(measured: dict[str, Any]) -> None:
    for said in (measured["right"], measured["right again"]):
        assert "gradients are those of a single process, largest relative error" in said


@pytest.mark.parametrize("fault", ["lost", "scaled", "not finite"])
def test_a_fault_on_one_rank_stops_the_run_with_parameter_error_and_remedy(
    measured: dict[str, Any], fault: str
) -> None:
    said = measured[fault]
    assert "found a gradient of " in said and "allowed: " in said, said
    assert "ds_configs/" in said and "--check_gradients off" in said


def test_weights_optimizer_random_numbers_and_the_place_in_the_data_stay(
    measured: dict[str, Any],
) -> None:
    assert measured["leaves no trace"]
