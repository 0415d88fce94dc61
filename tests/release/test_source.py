"""What is handed out is the commit, and its sums find every change."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from meloformer.errors import ConfigError, ReleaseError
from meloformer.release.source import (
    Commit,
    check_sums,
    clean_commit,
    unpack,
    write_archive,
    write_source_archive,
    write_sums,
)
from tests.release.conftest import git


def test_a_tree_with_changes_is_refused(root: Path) -> None:
    for name, text in (("new.py", ""), ("VERSION", "1.2.3\n\n")):
        (root / name).write_text(text)
        with pytest.raises(ConfigError, match=f"found 1 files .*{name}.*allowed"):
            clean_commit(root)
        git(root, "add", "-A")
        git(root, "commit", "-m", name)
    assert clean_commit(root).version.number == "1.2.3"


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no git checkout") as refusal:
        clean_commit(tmp_path)
    assert "\n" not in str(refusal.value)


def test_the_archive_holds_the_commit_alone_and_always_the_same_bytes(
    commit: Commit, tmp_path: Path
) -> None:
    (commit.root / "lies-beside.txt").write_text("no part of the commit")
    paths = [tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"]
    for path in paths:
        write_source_archive(commit, path, top="MeloFormer-1.2.3")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    (tmp_path / "out").mkdir()
    tree = unpack(paths[0], tmp_path / "out")
    assert tree.name == "MeloFormer-1.2.3"
    listed = subprocess.check_output(["git", "ls-files"], cwd=commit.root, text=True).split()
    assert sorted(path.name for path in tree.rglob("*")) == sorted(listed)


def test_an_archive_of_a_folder_does_not_say_who_made_it_and_when(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("a")
    write_archive(folder, tmp_path / "1.tar.gz", 1_000)
    (folder / "sub" / "a").chmod(0o600)
    (folder / "sub" / "a").touch()
    write_archive(folder, tmp_path / "2.tar.gz", 1_000)
    assert (tmp_path / "1.tar.gz").read_bytes() == (tmp_path / "2.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "1.tar.gz") as tar:
        assert {(one.mtime, one.uid, one.uname) for one in tar.getmembers()} == {(1_000, 0, "")}
        assert tar.getnames() == ["given", "given/sub", "given/sub/a"]


def test_sums_find_a_file_that_is_changed_added_or_gone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_text(name)
    lines = write_sums(tmp_path).read_text().splitlines()
    assert lines == [
        f"{hashlib.sha256(name.encode()).hexdigest()}  {name}" for name in ("a", "sub/b")
    ]
    assert check_sums(tmp_path) == 2
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path, check=True)
    (tmp_path / "c").write_text("")
    with pytest.raises(ReleaseError, match="/c: missing, changed or not in"):
        check_sums(tmp_path)
    (tmp_path / "c").unlink()
    (tmp_path / "a").write_text("b")
    with pytest.raises(ReleaseError, match="/a: missing, changed"):
        check_sums(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(ReleaseError, match="/a: missing, changed"):
        check_sums(tmp_path)
