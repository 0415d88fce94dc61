"""The commit that is released, as files: never what lies in the working tree beside it."""

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from meloformer.errors import ConfigError, ReleaseError
from meloformer.file_sums import sha256_of
from meloformer.release.programs import run_program
from meloformer.release.versions import Version, agreed_version

SUMS_NAME = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What git says of the tree that is released.

    Args:
        root: of the checkout.
        name: the full hash.
        seconds: since 1970, when it was made; every file of a release bears this time.
        version: that all its files agree on.
    """

    root: Path
    name: str
    seconds: int
    version: Version


def clean_commit(root: Path) -> Commit:
    """The commit of a checkout that holds nothing else.

    Raises:
        ConfigError: no checkout, or one with changes; or its versions differ.
    """
    try:
        changed = run_program(["git", "status", "--porcelain"], root).splitlines()
        name, seconds = run_program(["git", "log", "-1", "--format=%H %ct"], root).split()
    except (ReleaseError, OSError) as error:
        raise ConfigError(
            f"{root}: no git checkout ({error}); allowed: a clone of MeloFormer; a release is a "
            "commit"
        ) from error
    if changed:
        raise ConfigError(
            f"{root}: found {len(changed)} files that are in no commit, first "
            f"{changed[0].strip()!r}; allowed: a tree without changes; commit or stash them"
        )
    return Commit(root=root, name=name, seconds=int(seconds), version=agreed_version(root))


def write_source_archive(commit: Commit, path: Path, *, top: str) -> None:
    """A .tar.gz of all files of a commit; the same commit gives the same bytes.

    Args:
        commit: of the checkout.
        path: to be written.
        top: the folder that it unpacks to.
    """
    plain = path.with_suffix("")
    run_program(
        ["git", "archive", "--format=tar", f"--prefix={top}/", "-o", plain, commit.name],
        commit.root,
    )
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, commit.seconds) as packed:
        packed.write(plain.read_bytes())
    plain.unlink()


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a .tar.gz; the one folder that it holds.

    Raises:
        ReleaseError: it holds no folder, or several.
    """
    with tarfile.open(archive) as tar:
        tops = {name.split("/")[0] for name in tar.getnames()}
        if len(tops) != 1:
            raise ReleaseError(f"{archive}: found {sorted(tops)}, expected one folder")
        tar.extractall(folder, filter="data")
    return folder / tops.pop()


def write_archive(folder: Path, path: Path, seconds: int) -> None:
    """A .tar.gz of a folder, under its own name, without owners, in one order and of one time."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = seconds
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, seconds) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(folder, folder.name, recursive=False, filter=plain)
        for member in sorted(folder.rglob("*")):
            tar.add(member, f"{folder.name}/{member.relative_to(folder).as_posix()}",
                    recursive=False, filter=plain)  # fmt: skip


def write_sums(folder: Path) -> Path:
    """SHA256SUMS of all files below a folder, as `sha256sum --check` reads it."""
    sums = folder / SUMS_NAME
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != sums)
    lines = io.StringIO()
    for path in files:
        lines.write(f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n")
    sums.write_text(lines.getvalue(), encoding="utf-8")
    return sums


def check_sums(folder: Path) -> int:
    """Compare every file below a folder with SHA256SUMS there; how many there are.

    Raises:
        ReleaseError: a file is missing, is another, or is not named there.
    """
    lines = (folder / SUMS_NAME).read_text(encoding="utf-8").splitlines()
    named = {name: found for found, name in (line.split("  ", 1) for line in lines)}
    there = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path != folder / SUMS_NAME
    }
    for name in sorted(named.keys() | there.keys()):
        if name not in there or named.get(name) != sha256_of(there[name]):
            raise ReleaseError(
                f"{folder / name}: missing, changed or not in {SUMS_NAME}; expected the file of "
                "the release; unpack it again"
            )
    return len(there)
