"""The gradient of one global batch through ZeRO-2, however it is cut, against plain autograd."""

import json
from pathlib import Path

import pytest

from tests.training import gradient_worker
from tests.training.launching import ROOT, run, torchrun

WORKER = str(ROOT / "tests/training/gradient_worker.py")


@pytest.fixture(
    scope="module",
    params=[
        1,
        pytest.param(2, marks=pytest.mark.distributed),
        pytest.param(4, marks=[pytest.mark.distributed, pytest.mark.slow]),
    ],
)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the first of some ranks measured; one launch for all claims."""
    folder: Path = tmp_path_factory.mktemp("gradients")
    if request.param == 1:
        gradient_worker.main(folder)
    else:
        done = run([*torchrun(request.param), WORKER, str(folder)])
        assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{request.param}.json").read_text())


def test_the_gradient_does_not_depend_on_ranks_accumulation_or_ragged_rows(measured: dict) -> None:
    assert measured["errors"].keys() == {"1", "4", "8"}
    for accumulation, error in measured["errors"].items():
        assert error < 1e-6, f"accumulation {accumulation}"


def test_the_gradient_norm_is_that_of_the_whole_gradient(measured: dict) -> None:
    for error in measured["norm_errors"].values():
        assert error < 1e-6


def test_a_nan_and_a_spike_on_one_rank_leave_no_trace_after_the_steps_are_dropped(
    measured: dict,
) -> None:
    assert measured["moved"] > 1e-3
    assert measured["dropped_steps_left_no_trace"]
