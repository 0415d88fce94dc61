"""What tests of training share."""

import fcntl
import importlib.util
import json
import os
import pickle
import shutil
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


@pytest.fixture(scope="module")
def base_flags(chorale_shards: Path) -> list[str]:
    """Flags of a run of six steps that ends in seconds."""
    return (
        f"--data {chorale_shards} --config {ROOT}/ds_configs/zero2.json --model_size tiny "
        "--max_seq_len 256 --batch_size 2 --gradient_accumulation_steps 2 --num_workers 0 "
        "--learning_rate 1e-3 --warmup_steps 2 --save_every 3 --validation_rows 2 --device cpu "
        "--samples 0 --max_steps 6"
    ).split()


_MEASURED: dict[tuple[str, int], dict[str, Any]] = {}


@pytest.fixture(scope="session")
def measured_by_ranks(
    chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, int], dict[str, Any]]:
    """What the first of some ranks of a worker measured; one launch for all claims of all files."""
    # Processes that share out the test files share the launches too.
    is_shared = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp().parent if is_shared else tmp_path_factory.getbasetemp()

    def launched(worker: str, num_ranks: int, folder: Path) -> dict[str, Any]:
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
        return found | {"parts": parts}

    def measured(worker: str, num_ranks: int) -> dict[str, Any]:
        if (worker, num_ranks) not in _MEASURED:
            folder = base / f"{worker}-{num_ranks}"
            with (base / f"{folder.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (kept := base / f"{folder.name}.pickle").exists():
                    # A launch that failed is tried again, in a folder without its remains.
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    kept.write_bytes(pickle.dumps(launched(worker, num_ranks, folder)))
                _MEASURED[worker, num_ranks] = pickle.loads(kept.read_bytes())
        return _MEASURED[worker, num_ranks]

    return measured
