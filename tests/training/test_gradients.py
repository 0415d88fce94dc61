"""The gradient of one global batch through DeepSpeed, however it is cut, against plain autograd."""

from collections.abc import Callable
from typing import Any

import pytest

from meloformer.training.ranks import start_ranks
from tests.training import gradient_worker
from tests.training.checkpoint_worker import FEW
from tests.training.partitionings_worker import PARTITIONINGS, PRECISIONS

# Relative to the largest gradient. bf16 rounds what travels between ranks, once per micro-step.
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-2}


@pytest.fixture(
    scope="module",
    params=[
        "zero2 fp32 1",
        pytest.param("zero2 fp32 2", marks=pytest.mark.distributed),
        pytest.param("zero2 fp32 4", marks=[pytest.mark.distributed, pytest.mark.slow]),
        *(
            pytest.param(
                f"{name} {precision} all", marks=[pytest.mark.distributed, pytest.mark.slow]
            )
            for name in PARTITIONINGS
            for precision in PRECISIONS
        ),
    ],
)
def measured(
    request: pytest.FixtureRequest, measured_by_ranks: Callable[[str, int], dict[str, Any]]
) -> dict[str, Any]:
    """Of a partitioning, a precision and some ranks; "all": on two, launched together."""
    name, precision, ranks = request.param.split()
    if ranks == "all":
        found = measured_by_ranks("partitionings_worker", 2)[f"{name} {precision}"]["gradients"]
    elif ranks == "1":
        found = gradient_worker.measure(start_ranks("cpu"), name)
    else:
        found = measured_by_ranks("ranks_worker", int(ranks))["gradients"]
    return found | {"tolerance": TOLERANCE[precision]}


def test_the_gradient_does_not_depend_on_ranks_accumulation_or_ragged_rows(
    measured: dict[str, Any],
) -> None:
    assert list(map(int, measured["errors"])) == [1, 4, 8]
    for accumulation, error in measured["errors"].items():
        assert error < measured["tolerance"], f"accumulation {accumulation}"


def test_the_gradient_norm_is_that_of_the_whole_gradient(measured: dict[str, Any]) -> None:
    for error in measured["norm_errors"].values():
        assert error < measured["tolerance"]


def test_a_nan_and_a_spike_on_one_rank_leave_no_trace_after_the_steps_are_dropped(
    measured: dict[str, Any],
) -> None:
    assert measured["moved"] > 1e-3
    assert measured["dropped_steps_left_no_trace"]


@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_one_rank_several_and_one_again_go_on_as_if_nothing_had_happened(
    num_ranks: int, measured_by_ranks: Callable[[str, int], dict[str, Any]]
) -> None:
    parts = measured_by_ranks("ranks_worker", num_ranks)["parts"]
    before, between, after = (parts[moment] for moment in ("before", "between", "after"))
    assert before.keys() == between.keys() == after.keys() and len(before) == len(FEW)
    for key in before:
        assert between[key]["difference"] == after[key]["difference"] == 0
        assert between[key]["before"] == pytest.approx(before[key]["after"], abs=1e-4)
        assert after[key]["before"] == pytest.approx(between[key]["after"], abs=1e-4)
