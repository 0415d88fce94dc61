"""What tests of training share."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """A run in this process says in the environment which rank it is; nobody else should hear."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
