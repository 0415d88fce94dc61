"""Every command of the documents is read by the command line that it is typed for, with values.

Beside it what else asks the command lines of all recipes: their imports take the time.
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meloformer.__main__ import recipes
from meloformer.errors import MeloFormerError
from tests.documents import (
    DOCUMENTS,
    PLACEHOLDERS,
    RECIPES,
    ROOT,
    Command,
    Part,
    code_with_lines,
    commands_in,
    commands_of,
)
from tests.recipe_flags import flags_of, help_of, run

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

# Said of a launcher, and no command.
REFUSED = {"deepspeed --config ds_configs/zero2.json": "the row says that it is refused"}
# Programs of others whose flags nobody here can read.
OF_OTHERS = (
    *("apt-get", "cd", "git", "hf", "kubectl", "pytest", "sha256sum", "source", "ssh"),
    *("systemctl", "tar", "tensorboard"),
)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout whose make finds everything set up and a python that does nothing."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "ds_configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(shutil.which("true") or "/bin/true")
    for name in re.findall(r"/(\.ready[a-z-]*):", (ROOT / "Makefile").read_text()):
        (folder / ".venv/bin" / name).touch()
    (folder / f".venv-torch-{PLACEHOLDERS['<version>']}").mkdir()
    (folder / f".venv-torch-{PLACEHOLDERS['<version>']}/.ready").touch()
    (folder / "my_rule.json").write_text('[{"bar_distances": null, "order": "bar", "share": 1}]')
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def read_recipe(part: Part) -> None:
    """`python launch/...`, `launch/...` or `python -m ...`."""
    words = part.words[1:] if part.program.startswith("python") else part.words
    if words[0] in ("-c", "-m"):
        words = words[1:]
        if words[0] == "pip":
            return read_pip(Part(part.variables, words))
        if not words[0].startswith("meloformer."):  # pytest, venv, a line of Python
            return
    if words[0].endswith(("sh", "sbatch")):  # they hand their flags on
        assert Path(words[0]).is_file()
        words[0] = "launch/train.py"
    flags_of(words[0], words[1:])


def read_torchrun(part: Part) -> None:
    from torch.distributed.run import get_args_parser

    read = get_args_parser().parse_args(part.words[1:])
    flags_of(read.training_script, read.training_script_args)


def read_deepspeed(part: Part) -> None:
    from deepspeed.launcher.runner import parse_args

    read = parse_args(part.words[1:])
    flags_of(read.user_script, read.user_args)


def read_console(part: Part) -> None:
    """`meloformer ...`."""
    words = [word.replace("-", "_") for word in part.words[1:3]]
    length = 2 if tuple(words) in recipes() else 1
    path = recipes()[tuple(words[:length])]
    flags_of(path.relative_to(ROOT).as_posix(), part.words[1 + length :])


def read_make(part: Part) -> None:
    """What make would start is read in its turn."""
    # As `make test` runs this very test, the outer make must not speak through the inner one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", *part.words[1:]],
        env=environment | part.variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for command in commands_in(done.stdout):
        if command.parts[0].program != "make":  # it has been asked already
            read(command)


def read_pip(part: Part) -> None:
    """Extras that are asked for exist."""
    _, _, known = (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]\n")
    extras = set(re.findall(r"^([\w-]+) = \[", known.partition("\n[")[0], re.MULTILINE))
    asked = re.findall(r"\.\[([\w,-]+)\]", " ".join(part.words))
    assert {one for some in asked for one in some.split(",")} <= extras
    assert "constraints.txt" in part.words or "-c" not in part.words


READERS: dict[str, Callable[[Part], None]] = {
    "python": read_recipe,
    "python3": read_recipe,
    "torchrun": read_torchrun,
    "deepspeed": read_deepspeed,
    "meloformer": read_console,
    "make": read_make,
    "pip": read_pip,
    "sbatch": lambda part: read_recipe(Part(part.variables, part.words[1:])),
    **dict.fromkeys(OF_OTHERS, lambda part: None),
}


def read(command: Command) -> None:
    """Every program of it by its own command line."""
    for part in command.parts:
        reader = read_recipe if part.program.startswith("launch/") else READERS[part.program]
        reader(part)


def refusals(commands: list[Command]) -> list[str]:
    """Commands that cannot be typed as they stand, and why."""
    found = []
    for command in commands:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                read(command)
        except (MeloFormerError, AssertionError, LookupError, OSError, SystemExit) as refusal:
            why = f"{refusal or type(refusal).__name__} {said.getvalue()}".strip()
            found.append(f"{command}\n    {why}")
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_is_taken_with_its_values(document: str) -> None:
    commands = [one for one in commands_of(document) if one.text not in REFUSED]
    found = refusals(commands)
    assert not found, "\n".join(found)


def test_a_launcher_refuses_what_is_said_to_be_refused() -> None:
    shown = [one for document in DOCUMENTS for one in commands_of(document)]
    assert REFUSED.keys() <= {one.text for one in shown}
    assert len(refusals([Command("", 0, text) for text in REFUSED])) == len(REFUSED)


@pytest.mark.parametrize(
    "wrong",
    [
        "python launch/train.py --model_size tinny",
        "torchrun --nproc_per_node 8 launch/train.py --max_steps two",
        "torchrun --nproc_per_node launch/train.py",
        "deepspeed --num_gpus 8 launch/train.py --no_such_flag",
        "nohup meloformer tools watch --no_such_flag > out 2>&1 &",
        "python launch/evaluate.py --control --bridge runs/<bridge>",
        "python launch/generate.py --fill_midi song.mid --continue_midi song.mid",
        "python launch/no_such_recipe.py",
        "python launch/train.py && python launch/train.py --lora -1",
        "make no-such-target",
        "make train GPUS=8 ARGS='--model_size tinny'",
        "make page ARGS='--bridge'",
        "python -m meloformer.tokens --no_such_flag",
        "pip install -c constraints.txt -e '.[train,lorra]'",
        "sbatch launch/cluster/slurm.sbatch --model_size tinny",
        "sbatch launch/cluster/no_such.sbatch",
        "python launch/train.py --output runs/<nobody knows>",
        "cargo build",
    ],
)
def test_a_command_that_would_not_be_taken_is_found(wrong: str) -> None:
    (found,) = refusals([Command("a.md", 7, wrong)])
    assert found.startswith("a.md:7: ")


def test_the_reader_of_documents_finds_all_kinds_of_code_with_their_lines() -> None:
    text = (
        "say `make a` or `make` or\n\n    meloformer b \\\n      --c  # d\n\n```sh\nX=1 E f\n```\n"
    )
    assert [(line, shown) for line, shown, _ in code_with_lines(text)] == [
        (1, "make a"),
        (1, "make"),
        (3, "meloformer b --c  # d"),
        (7, "X=1 E f"),
    ]
    readme = commands_of("README.md")
    assert sum("launch/" in one.text for one in readme) > 50
    assert {one.parts[0].program for one in readme} >= {"make", "torchrun", "deepspeed", "pip"}
    (one,) = Command("", 1, "nohup A=1 x/python launch/<name>.py '...' ... > a 2>&1 &").parts
    assert one == Part({"A": "1"}, ["x/python", "launch/name.py", "..."])


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
