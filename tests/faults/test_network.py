"""A machine that loses its network or its agent comes back: the run ends as if undisturbed."""

import pytest

from tests.faults.network import agent_is_lost, namespaces_are_forbidden, network_is_lost
from tests.faults.rows import Drill

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_a_machine_that_loses_its_network_comes_back_to_the_undisturbed_losses(
    drill: Drill,
) -> None:
    row = network_is_lost(drill)
    if namespaces_are_forbidden():
        assert row.outcome.startswith("SKIPPED: ")
        pytest.skip(row.outcome)
    assert row.outcome == "PASS"


def test_an_agent_that_is_lost_comes_back_to_the_undisturbed_losses(drill: Drill) -> None:
    row = agent_is_lost(drill)
    assert row.outcome == "PASS"
    assert row.steps_lost is not None and row.steps_lost > 0
