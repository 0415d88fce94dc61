"""Batches that go wrong on one rank of several, against a run that never saw them."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.training.bad_steps_worker import (
    FAULTS,
    GOOD_STEP,
    MAX_SKIPPED,
    NUM_STEPS,
    THROWN_AWAY,
    WINDOW,
)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def measured(
    request: pytest.FixtureRequest, measured_by_ranks: Callable[[str, int], dict[str, Any]]
) -> dict[str, Any]:
    """What `bad_steps_worker.measure` found on some ranks."""
    return measured_by_ranks("ranks_worker", request.param)["bad_steps"] | {
        "num_ranks": request.param
    }


def test_the_weights_are_bit_for_bit_those_of_a_run_without_the_bad_batches(
    measured: dict[str, Any],
) -> None:
    assert measured["equal"] and all(measured["equal"].values()), measured["equal"]


def test_losses_and_norms_of_the_good_steps_are_those_of_that_run(measured: dict[str, Any]) -> None:
    names = ("loss", "grad_norm", "lr", "tokens")
    good = [line for line in measured["lines"] if not line["dropped"]]
    assert [[line[name] for name in names] for line in good] == [
        [line[name] for name in names] for line in measured["undisturbed"]
    ]


def test_every_step_has_one_line_and_the_dropped_ones_say_why(measured: dict[str, Any]) -> None:
    lines = measured["lines"]
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    before = [batch for batch in FAULTS if batch <= GOOD_STEP]
    assert [line["step"] for line in lines if line["dropped"]] == before
    for batch in before:
        why = lines[batch - 1]["dropped"]["why"]
        assert ("not finite" if math.isnan(FAULTS[batch]) else "is above") in why
        assert f"step {batch} is dropped: {why}" in measured["log"]


def test_a_dropped_step_names_the_pieces_of_all_ranks_and_where_the_loss_went_wrong(
    measured: dict[str, Any],
) -> None:
    last = measured["num_ranks"] - 1
    first_nan = next(batch for batch, factor in FAULTS.items() if math.isnan(factor))
    batches = measured["lines"][first_nan - 1]["dropped"]["batches"]
    assert [batch["rank"] for batch in batches][: last + 1] == list(range(last + 1))
    pieces = [piece for batch in batches for piece in batch["pieces"]]
    assert len(pieces) == len(set(pieces)) >= 4
    assert all((batch["loss"] is None) == (batch["rank"] == last) for batch in batches)


def test_after_some_in_a_row_the_run_goes_back_and_on_with_the_data_behind_them(
    measured: dict[str, Any],
) -> None:
    told = [line for line in measured["lines"] if line["rolled_back"]]
    assert [line["step"] for line in told] == [GOOD_STEP + 1]
    event = told[0]["rolled_back"]
    in_a_row = [batch for batch in FAULTS if batch > GOOD_STEP]
    assert event["from_step"] == in_a_row[-1] and event["to_step"] == GOOD_STEP
    assert len(in_a_row) == MAX_SKIPPED and in_a_row[0] > THROWN_AWAY
    assert [step["step"] for step in event["dropped"]] == in_a_row
    assert all(step["why"] and step["batches"] for step in event["dropped"])
    assert f"rolled back to step {GOOD_STEP}" in measured["log"]


def test_counters_go_on_counting_over_a_rollback(measured: dict[str, Any]) -> None:
    last = measured["lines"][-1]
    assert (last["skipped"], last["rollbacks"]) == (len(FAULTS), 1)


def test_a_checkpoint_holds_what_the_next_step_is_compared_with(measured: dict[str, Any]) -> None:
    saved = measured["saved"]
    good = [line for line in measured["lines"][:GOOD_STEP] if not line["dropped"]]
    assert saved["recent_steps"] == [[line["loss"], line["grad_norm"]] for line in good][-WINDOW:]
    assert saved["setbacks"] == {"skipped_in_a_row": 0, "rollbacks": 0, "rolled_back_from": 0}
