"""A page with a model that was never trained, shared by the tests of a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meloformer.demo.composer import Composer, load_composer
from meloformer.demo.settings import PageConfig
from tests.demo.browsers import CHROMIUM, FLAGS, SECONDS
from tests.demo.pages import LIMITS, Talkative, Visitor, serving, wait_until, write_random_model


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("secret-run"))


@pytest.fixture(scope="session")
def composer(run_folder: Path) -> Composer:
    loaded = load_composer(PageConfig(checkpoint=run_folder, device="cpu", limits=LIMITS))
    loaded.model.__class__ = Talkative  # so that later bars are still to come when one is there
    return loaded


@pytest.fixture(scope="module")
def page(composer: Composer) -> Iterator[Visitor]:
    with serving(composer) as visitor:
        yield visitor


@pytest.fixture(autouse=True)
def _nobody_is_left_from_the_test_before(request: pytest.FixtureRequest) -> None:
    """An answer may be read before its place in the line is free."""
    if "page" in request.fixturenames:
        studio = request.getfixturevalue("page").studio
        wait_until(lambda: len(studio.line) == 0)


@pytest.fixture(scope="module")
def browsers() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs .[browser]: playwright")
    with playwright.sync_playwright() as library:
        yield library.chromium


@pytest.fixture
def open_page(browsers, page: Visitor, tmp_path: Path):
    """Opens the page in a browser of some language; complaints of its console fail the test."""
    contexts, complaints = [], []

    def opened(language: str = "en-US", **more: Any):
        context = browsers.launch_persistent_context(
            tmp_path / f"profile-{len(contexts)}",
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            locale=language,
            accept_downloads=True,
            **more,
        )
        contexts.append(context)
        tab = context.pages[0]
        tab.set_default_timeout(SECONDS)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        tab.goto(page.server.url)
        tab.wait_for_selector("body[data-ready=yes]")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
