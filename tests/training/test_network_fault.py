"""A machine that loses its network or its agent comes back: the run ends as if undisturbed."""

from pathlib import Path

import pytest

from tests.training.network_fault import (
    agent_is_lost,
    namespaces_are_forbidden,
    network_is_lost,
    train_undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def undisturbed(chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return train_undisturbed(chorale_shards, tmp_path_factory.mktemp("undisturbed"))


def test_a_machine_that_loses_its_network_comes_back_to_the_undisturbed_losses(
    chorale_shards: Path, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    row = network_is_lost(chorale_shards, tmp_path / "drill", undisturbed)
    if namespaces_are_forbidden():
        assert row.outcome.startswith("SKIPPED: ")
        pytest.skip(row.outcome)
    assert row.outcome == "PASS"


def test_an_agent_that_is_lost_comes_back_to_the_undisturbed_losses(
    chorale_shards: Path, undisturbed: dict[int, float], tmp_path: Path
) -> None:
    row = agent_is_lost(chorale_shards, tmp_path / "drill", undisturbed)
    assert row.outcome == "PASS"
    assert row.steps_lost is not None and row.steps_lost > 0
