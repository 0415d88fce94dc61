"""What the packages carry, and that an installation can say whether it works."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from meloformer.command_line import run_recipe
from meloformer.errors import ReleaseError
from meloformer.release.packages import build_packages
from meloformer.release.programs import run_program
from meloformer.release.smoke import check_installation, console_command, write_pieces
from meloformer.release.source import clean_commit
from tests.launch.recipes import load_recipe

ROOT = Path(__file__).parents[2]
recipe = load_recipe("tools/release.py")


def test_the_pieces_of_the_check_are_the_same_after_file_and_tokens(tmp_path: Path) -> None:
    assert write_pieces(tmp_path / "midi") > 1_000
    assert len(list((tmp_path / "midi").glob("*.mid"))) == 6


def test_a_checkout_has_its_commands_as_a_module() -> None:
    assert console_command() == [sys.executable, "-m", "meloformer"]


def test_a_program_that_fails_is_quoted_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"ended with status 3: first \| second$") as refusal:
        run_program(["sh", "-c", "echo first; echo second >&2; exit 3"], tmp_path)
    assert "\n" not in str(refusal.value)
    assert run_program(["sh", "-c", "echo ${A-none}"], tmp_path, {"A": ""}) == "none\n"


@pytest.mark.parametrize("flags", [["--bridge", "runs/a"], ["--base", "runs/a"]])
def test_a_bridge_without_its_base_is_refused(flags, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.main, recipe.ReleaseConfig, flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "allowed: both or neither" in said


def test_make_hands_bridge_and_base_on() -> None:
    def dry(*words: str) -> str:
        command = [
            "make",
            "--dry-run",
            "--no-print-directory",
            "-o",
            ".venv/bin/.ready-release",
            "release",
            *words,
        ]
        return subprocess.check_output(command, cwd=ROOT, text=True)

    assert dry().split("release.py")[1].split() == []
    said = dry("BRIDGE=runs/a b", "BASE=runs/c").split("release.py")[1].split("\n")[0]
    assert said.split() == ["--bridge", "'runs/a", "b'", "--base", "'runs/c'"]


@pytest.mark.slow
def test_wheel_and_sdist_carry_recipes_partitionings_and_page(tmp_path: Path) -> None:
    # A folder of that name, as `make proof` leaves one, is no such package.
    pytest.importorskip("build.__main__", reason="the extra `release` is not installed")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    outputs = []
    for name in ("first", "second"):
        (tmp_path / name / "aside").mkdir(parents=True)
        outputs.append(
            build_packages(clean_commit(clone), tmp_path / name, tmp_path / name / "aside")
        )
    wheel, sdist, archive = outputs[0]
    assert wheel.read_bytes() == outputs[1][0].read_bytes(), "the same commit, the same bytes"
    wanted = [
        "launch/train.py",
        "launch/tools/check_install.py",
        "launch/cluster/one_node.sh",
        "ds_configs/zero2.json",
        "demo/static/index.html",
        "box/model.safetensors",
    ]
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        assert {f"meloformer/{name}" for name in wanted} <= names
        assert not [name for name in names if name.startswith("tests")]
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert b"meloformer = meloformer.__main__:main" in packed.read(points)
    for path, inside in ((sdist, "VERSION"), (archive, "constraints.txt")):
        with tarfile.open(path) as tar:
            assert any(name.endswith("/" + inside) for name in tar.getnames())


@pytest.mark.slow
def test_the_check_of_an_installation_walks_to_a_models_music(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = list(check_installation(tmp_path))
    assert len(found) == 5 and found[-1].startswith("2 bars of a random model")
