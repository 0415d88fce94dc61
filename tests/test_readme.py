"""Every command that documents, the Makefile and the recipes' docstrings show exists as shown."""

import contextlib
import functools
import io
import os
import re
import runpy
import shlex
import signal
import subprocess
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RECIPES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "launch").rglob("*.py")
    if path.name != "__init__.py"
)

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README*.md", "RELEASE_NOTES.md", "docs/**/*.md", "launch/**/README.md")
    for path in ROOT.glob(pattern)
)

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


def run(recipe: str, flag: str) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a recipe run as a script, in this process: imports take
    seconds, and most recipes share them.
    """
    out, err = io.StringIO(), io.StringIO()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with (
        mock.patch("sys.argv", [recipe, flag]),
        mock.patch("meloformer.interrupts.listen"),  # it would be for good, and for all tests
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(ROOT / recipe), run_name="__main__")
    for number, handler in kept.items():
        signal.signal(number, handler)  # some recipes end at signals in a way of their own
    return ended.value.code, out.getvalue(), err.getvalue()


@functools.cache
def help_of(recipe: str) -> str:
    code, said, complaint = run(recipe, "--help")
    assert code == 0, complaint
    return said


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(recipe, flags) of every command line that names a recipe."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for piece in re.findall(r"(launch/[\w/]+\.py[^`\n|]*)", line):
            recipe, *arguments = shlex.split(piece, comments=True)
            found.append((recipe, [a.split("=")[0] for a in arguments if a.startswith("--")]))
    return found


def code_of(text: str) -> str:
    """Lines of all code: of fenced and of indented blocks, and what stands between backticks."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^(?: {4}|\t)(.*(?:\\\n.*)*)", prose, re.MULTILINE)
    return "\n".join([*blocks, *indented, *re.findall(r"`([^`\n]+)`", prose)])


def console_commands(text: str) -> list[tuple[str, list[str]]]:
    """(recipe, flags) of every command line that begins with `meloformer`."""
    found = []
    for line in re.findall(r"(?:^|[\s/])meloformer ([a-z].*)", text):
        words = shlex.split(line.replace("'", ""), comments=True)
        names = [word.replace("-", "_") for word in words[:2]]
        groups = {Path(recipe).parts[1] for recipe in RECIPES if recipe.count("/") > 1}
        parts = names if names[0] in groups else names[:1]
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        found.append((f"launch/{'/'.join(parts)}.py", [f for f in flags if f != "--help"]))
    return found


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_recipes_and_flags_that_exist(document) -> None:
    code = code_of((ROOT / document).read_text(encoding="utf-8"))
    for recipe, flags in [*commands(code), *console_commands(code)]:
        assert recipe in RECIPES, recipe
        missing = [flag for flag in flags if flag not in help_of(recipe)]
        assert missing == [], recipe
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", code)) <= make_targets()


def test_the_reader_of_documents_finds_what_it_is_to_check() -> None:
    code = code_of("say `python launch/a.py --b 1` or\n\n```sh\nX=1 python launch/c.py --d\n```\n")
    assert commands(code) == [("launch/c.py", ["--d"]), ("launch/a.py", ["--b"])]
    assert console_commands(".venv/bin/meloformer tools check-install --output a") == [
        ("launch/tools/check_install.py", ["--output"])
    ]
    assert code_of(README).count("launch/") >= README.count("`python launch/") > 40


@pytest.mark.parametrize("recipe", RECIPES)
def test_docstrings_of_recipes_show_flags_that_exist(recipe) -> None:
    docstring = (ROOT / recipe).read_text().split('"""')[1]
    for named, flags in commands(docstring):
        assert named in RECIPES
        missing = [flag for flag in flags if flag not in help_of(named)]
        assert missing == []


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
