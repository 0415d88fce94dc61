"""`meloformer COMMAND`: every recipe is there, and behaves as the script does."""

import subprocess
import sys
from pathlib import Path

from meloformer.__main__ import recipes
from meloformer.command_line import LAUNCH

ROOT = Path(__file__).parent.parent


def meloformer(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meloformer", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_script_of_launch_is_a_command_with_a_line_of_its_own() -> None:
    scripts = {path for path in LAUNCH.rglob("*.py") if path.stem != "__init__"}
    assert set(recipes().values()) == scripts
    said = meloformer()
    assert said.returncode == 0
    lines = said.stdout.splitlines()[2:]
    assert len(lines) == len(scripts)
    for words, line in zip(recipes(), lines, strict=True):
        assert line.split()[: len(words)] == list(words) and len(line.split()) > len(words)


def test_a_command_is_the_script_of_its_name_however_it_is_spelled() -> None:
    for words in (("shard-data",), ("shard_data",), ("tools", "inspect-shards")):
        said = meloformer(*words, "--help")
        name = " ".join(words).replace("-", "_")
        assert said.returncode == 0 and f"usage: meloformer {name} " in said.stdout


def test_a_refusal_keeps_its_line_and_its_status() -> None:
    said = meloformer("tools", "watch", "--run", "no-such-folder")
    assert said.returncode == 2 and said.stderr.startswith("error: ")
    assert len(said.stderr.splitlines()) == 1


def test_what_is_no_command_is_refused_in_one_line() -> None:
    for words, named in ((("no-such",), "no-such"), (("tools", "no-such"), "tools no-such")):
        said = meloformer(*words)
        assert said.returncode == 2 and said.stderr.count("\n") == 1
        assert f"meloformer {named}: found no such command" in said.stderr


def test_the_package_installs_the_command() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert '[project.scripts]\nmeloformer = "meloformer.__main__:main"\n' in project
