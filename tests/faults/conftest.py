"""What tests that play faults share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.rows import Drill
from tests.faults.table import shared_undisturbed


@pytest.fixture(scope="session")
def undisturbed(
    chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[int, float]]:
    """Losses of runs that nothing befalls, each played once."""
    return shared_undisturbed(chorale_shards, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def drill(
    chorale_shards: Path, tmp_path: Path, undisturbed: Callable[..., dict[int, float]]
) -> Drill:
    """For one fault."""
    return Drill(chorale_shards, tmp_path / "drill", undisturbed)
