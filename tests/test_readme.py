"""What README, the Makefile and the recipes' docstrings name exists."""

import os
import re
import subprocess

import pytest

from tests.documents import DOCUMENTS, RECIPES, ROOT, code_of, code_with_lines
from tests.recipe_flags import help_of, run

README = (ROOT / "README.md").read_text()
# The flags of DESIGN's contract, one line a recipe.
CONTRACT = {
    "launch/train.py": "config data output model_size batch_size gradient_accumulation_steps "
    "max_seq_len num_workers epochs max_steps learning_rate warmup_steps seed collate attention "
    "attention_precision phases save_every validate_every keep_last resume init_from dry_run "
    "device",
    "launch/shard_data.py": "midi output num_workers engine",
    "launch/generate.py": "checkpoint output bars tempo time_signature seed num_samples key "
    "instruments temperature top_k top_p",
    "launch/inference_diffusion_bridge.py": "checkpoint text num_chunks output steps solver "
    "guidance seed weights device",
    "launch/inject_museformer.py": "checkpoint summaries strategy alpha output bars seed "
    "num_samples weights tempo time_signature key instruments temperature top_k top_p",
    "launch/tools/inspect_shards.py": "verify with",
    "launch/tools/audit.py": "run data plant json",
}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_recipes_that_a_document_names_exist(document) -> None:
    code = code_of((ROOT / document).read_text(encoding="utf-8"))
    assert set(re.findall(r"launch/[\w/]+\.py", code)) <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_docstrings_of_recipes_show_flags_that_exist(recipe) -> None:
    docstring = (ROOT / recipe).read_text().split('"""')[1]
    for _, shown, _ in code_with_lines(docstring, is_all_code=True):
        for named, flags in re.findall(r"(launch/[\w/]+\.py)([^`]*)", shown):
            assert named in RECIPES
            given = re.findall(r"(?<=\s)--[\w-]+", flags)
            assert [flag for flag in given if flag not in help_of(named)] == []


@pytest.mark.parametrize("recipe", CONTRACT)
def test_a_recipe_takes_every_flag_of_the_contract(recipe) -> None:
    words = set(re.findall(r"--[\w-]+", help_of(recipe)))
    assert {f"--{name}" for name in CONTRACT[recipe].split()} <= words


@pytest.mark.parametrize("recipe", CONTRACT)
def test_an_unknown_flag_ends_with_code_2(recipe) -> None:
    code, _, complaint = run(recipe, "--no_such_flag")
    assert code == 2
    assert "no_such_flag" in complaint


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
