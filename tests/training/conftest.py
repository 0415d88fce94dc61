"""What tests of training share."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training.checkpoint_worker import FEW, through
from tests.training.launching import run, torchrun

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """A run in this process says in the environment which rank it is; nobody else should hear."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """launch/train.py as a module; nothing of it runs on import."""
    spec = importlib.util.spec_from_file_location("launch_train", ROOT / "launch/train.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where run_recipe looks for the text of --help
    spec.loader.exec_module(module)
    return module


_MEASURED: dict[tuple[str, int], dict[str, Any]] = {}


@pytest.fixture(scope="session")
def measured_by_ranks(
    chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], dict[str, Any]]:
    """What the first of some ranks of a worker measured; one launch for all claims of all files."""

    def measured(worker: str, num_ranks: int) -> dict[str, Any]:
        if (worker, num_ranks) not in _MEASURED:
            folder = tmp_path_factory.mktemp(f"{worker}-{num_ranks}")
            script = str(ROOT / f"tests/training/{worker}.py")
            parts = {}
            if worker == "ranks_worker":
                parts["before"] = through(folder, None, "one", FEW)
            command = [*torchrun(num_ranks), script, str(folder), str(chorale_shards)]
            # Many claims in one launch, and more ranks than cores.
            done = run(command, limit_seconds=1800)
            assert done.returncode == 0, done.stderr[-3000:]
            found = json.loads((folder / "measured.json").read_text())
            if worker == "ranks_worker":
                parts |= {"between": found["parts"]}
                parts["after"] = through(folder, "several", "one again", FEW)
            _MEASURED[worker, num_ranks] = found | {"parts": parts}
        return _MEASURED[worker, num_ranks]

    return measured
