"""What README and the Makefile name exists."""

import os
import re
import subprocess

import pytest

from tests.documents import DOCUMENTS, RECIPES, ROOT, code_of

README = (ROOT / "README.md").read_text()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_recipes_that_a_document_names_exist(document) -> None:
    code = code_of((ROOT / document).read_text(encoding="utf-8"))
    assert set(re.findall(r"launch/[\w/]+\.py", code)) <= set(RECIPES)


def test_make_help_lists_every_target_and_readme_names_none_that_is_missing() -> None:
    # As `make test` runs this very test, the outer make must not speak through the inner one.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert set(names) == make_targets()
    assert len(set(names)) == len(names)
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", README)) <= make_targets()


def test_every_folder_of_readmes_tree_exists() -> None:
    for name in re.findall(r"^    ([\w/]+/)\s", README, re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    for name in re.findall(r"^      (\w+/)\s", README, re.MULTILINE):
        assert (ROOT / "meloformer" / name).is_dir(), name


def test_every_picture_of_readme_exists() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
