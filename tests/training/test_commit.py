"""The commit of a working copy, and none of what is no working copy."""

import subprocess
from pathlib import Path

from meloformer.training.commit import commit_of


def test_a_change_since_the_commit_is_told_and_another_ones_repository_is_not_ours(
    tmp_path: Path,
) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]

    def git(*words: str) -> str:
        command = ["git", *identity, *words]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    inside = tmp_path / "site-packages"
    inside.mkdir()
    (tmp_path / "code.py").write_text("a = 1\n")
    assert commit_of(tmp_path) == "unknown"
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert commit_of(tmp_path) == git("rev-parse", "--short", "HEAD")
    (tmp_path / "PROOF.md").write_text("what a measurement writes\n")
    assert not commit_of(tmp_path).endswith("+")
    (tmp_path / "code.py").write_text("a = 2\n")
    assert commit_of(tmp_path) == git("rev-parse", "--short", "HEAD") + "+"
    assert commit_of(inside) == "unknown"
