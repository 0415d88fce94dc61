"""Recipes of launch/ as modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

LAUNCH = Path(__file__).parents[2] / "launch"


def load_recipe(path: str) -> ModuleType:
    """Import a recipe by its path under launch/."""
    name = "launch_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, LAUNCH / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where run_recipe looks for the text of --help
    spec.loader.exec_module(module)
    return module
