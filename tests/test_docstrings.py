"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import meloformer

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(meloformer.__path__, "meloformer.")
    if not module.ispkg and not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    assert sum(doctest.testmod(importlib.import_module(name)).attempted for name in MODULES) > 30
