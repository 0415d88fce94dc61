"""A page with a model that was never trained, shared by the tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meloformer.demo.composer import Composer, load_composer
from meloformer.demo.settings import PageConfig
from tests.demo.pages import LIMITS, Visitor, serving, write_random_model


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("secret-run"))


@pytest.fixture(scope="session")
def composer(run_folder: Path) -> Composer:
    return load_composer(PageConfig(checkpoint=run_folder, device="cpu", limits=LIMITS))


@pytest.fixture(scope="module")
def page(composer: Composer) -> Iterator[Visitor]:
    with serving(composer) as visitor:
        yield visitor
