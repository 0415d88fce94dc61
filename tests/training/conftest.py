"""What tests of training share."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

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
