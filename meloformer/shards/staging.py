"""Where a build writes: a folder beside the output that takes its name when all is there.

What a killed build left is kept, with a note of what was being built: the same command goes on.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meloformer.errors import ShardError
from meloformer.file_sums import sha256_of
from meloformer.shards.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    check_files,
    load_manifest,
)
from meloformer.shards.notes import read_note, sync_folder, write_note
from meloformer.shards.sources import InputLostError

_FINISHED = "finished"  # in the note: sum of the manifest that is about to take its place

_MAKE_ROOM = (
    "make room and give the same command, which goes on where this one stopped, or give another "
    "--output"
)
_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _MAKE_ROOM)

_OWN_FILES = re.compile(
    rf"{re.escape(MANIFEST_NAME)}|{re.escape(REJECTED_NAME)}|{re.escape(CARD_NAME)}|"
    r"(train|valid|test)/shard-\d+(\.tar|\.index\.npz|\.signatures\.npy)"
)


class BuildStoppedError(ShardError):
    """A build that stopped for want of room or memory; what it has done is kept."""


class UnfinishedBuildError(BuildStoppedError):
    """Another build was begun at this output, and is kept."""


class Staging:
    """A folder to write into, held by this process alone.

    Args:
        output: what it becomes.
    """

    def __init__(self, output: Path) -> None:
        # A link stands for what it names: the folder is made there, on the same disk.
        self.output = output.resolve()
        name = self.output.name
        self.folder = self.output.parent / f".{name}.building"
        self._note = self.output.parent / f".{name}.building.json"
        self._lock_file = self.output.parent / f".{name}.building.lock"
        self._replaced = self.output.parent / f".{name}.replaced"

    @property
    def work(self) -> Path:
        """Folder for what is needed until the end of the build."""
        return self.folder / "work"

    def is_complete(self) -> bool:
        """All is written, and only the name is wrong; not where a file has been cut short since."""
        try:
            check_files(self.folder, load_manifest(self.folder))
        except ShardError:
            return False
        return True

    def was_finished(self) -> bool:
        """The build was killed after its folder had taken its place."""
        finished = (self.read_note() or {}).get(_FINISHED)
        return finished is not None and finished == _manifest_sum(self.output)

    def base_sum(self) -> str | None:
        """Sum of the manifest that stands at the output, or stood there until a moment ago."""
        return _manifest_sum(self.output) or _manifest_sum(self._replaced)

    def put_in_place(self) -> Manifest:
        """Give the folder its name, once it has been looked at; what stood there gives way.

        Raises:
            BuildStoppedError: files that are not ours came into the output meanwhile.
        """
        if not self.was_finished():
            check_files(self.folder, load_manifest(self.folder))
            if self.output.exists() and (foreign := foreign_files(self.output)):
                raise BuildStoppedError(
                    f"--output {self.output}: found {foreign[0]}, which came there during the "
                    "build; move it away and give the same command"
                )
            note = self.read_note() or {}
            self._write_note(note | {_FINISHED: _manifest_sum(self.folder)})
            shutil.rmtree(self.work, ignore_errors=True)
            sync_folder(self.folder)
            if (self.output / MANIFEST_NAME).is_file():
                shutil.rmtree(self._replaced, ignore_errors=True)
                self.output.rename(self._replaced)
            self.folder.rename(self.output)  # an empty folder gives way, anything else is an error
            sync_folder(self.output.parent)
        shutil.rmtree(self._replaced, ignore_errors=True)
        self._note.unlink(missing_ok=True)
        return load_manifest(self.output)

    def discard(self) -> None:
        """Forget the build: what it was made from has to change first."""
        self._note.unlink(missing_ok=True)
        self._restore_replaced()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _restore_replaced(self) -> None:
        """Where a build was killed between its two renames, the output is what it was before."""
        if self._replaced.exists() and not self.output.exists():
            self._replaced.rename(self.output)

    def _write_note(self, note: dict[str, Any]) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        write_note(self._note, note, beside=self.work)

    def read_note(self) -> dict[str, Any] | None:
        """What was being built; None where nothing was, or nobody can tell."""
        note = read_note(self._note)
        return note if isinstance(note, dict) else None

    def begin(self, note: dict[str, Any]) -> None:
        """Start afresh; the note is written last, so that it never tells of what is not there."""
        self.discard()
        self._write_note(note)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other builds out; the system lets go when the process dies."""
        self.output.parent.mkdir(parents=True, exist_ok=True)
        descriptor = self._open_locked()
        try:
            yield
        finally:
            if not self.folder.exists():  # nothing is left that the note could tell of
                self._note.unlink(missing_ok=True)
                self._lock_file.unlink(missing_ok=True)
            os.close(descriptor)

    def _open_locked(self) -> int:
        while True:
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._lock(descriptor)
                # Another build may have ended, and its file with it, before the lock was ours.
                if self._lock_file.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(
                f"--output {self.output}: another build writes there now; wait for it or give "
                "another --output"
            ) from error


@contextmanager
def staged(output: Path, note: dict[str, Any], *, overwrite: bool) -> Iterator[Staging]:
    """A place to build, empty or with what a killed build of the same kind left.

    Args:
        output: absent, empty, or a shard folder that may be replaced.
        note: what is built, as JSON; only a build with an equal note is gone on with.
        overwrite: discard what an unfinished build of another kind left.

    Raises:
        ShardError: another build writes there, or left something else unfinished.
        BuildStoppedError: the disk refuses.
    """
    staging = Staging(output)
    try:
        with staging.held():
            _take_up(staging, note, overwrite=overwrite)
            try:
                yield staging
            except BuildStoppedError:
                raise
            except ShardError:
                staging.discard()
                raise
    except InputLostError as error:
        raise BuildStoppedError(
            f"--midi went away during the build ({error}); nothing was put in place: bring it back "
            "and give the same command, which goes on where this one stopped"
        ) from error
    except OSError as error:
        raise BuildStoppedError(
            f"--output {output} cannot be written ({error}); nothing was put in its place: "
            + _REMEDIES.get(error.errno or 0, "give another --output, which this user may write")
        ) from error


def _take_up(staging: Staging, note: dict[str, Any], *, overwrite: bool) -> None:
    if os.path.ismount(staging.output):
        raise BuildStoppedError(
            f"--output {staging.output} is a mount point, which cannot take another folder's "
            "place; give a folder inside it"
        )
    note = json.loads(json.dumps(note | {"base": staging.base_sum() if note["append"] else None}))
    if staging.was_finished():
        note["base"] = (staging.read_note() or {}).get("base")
    found = staging.read_note()
    is_same = found is not None and {k: found[k] for k in found if k != _FINISHED} == note
    if is_same and (staging.folder.exists() or staging.was_finished()):
        return
    if found is not None and staging.folder.exists() and not overwrite:
        changed = ", ".join(
            f"{name} {str(found.get(name))[:40]} -> {str(note[name])[:40]}"
            for name in note
            if found.get(name) != note[name]
        )
        raise UnfinishedBuildError(
            f"--output {staging.output}: an unfinished build of another kind lies there "
            f"({changed}); finish it with its own command, or give this one with --overwrite, "
            "which discards it"
        )
    staging.begin(note)


def _manifest_sum(folder: Path) -> str | None:
    """sha256 of a folder's manifest; None where there is none."""
    path = folder / MANIFEST_NAME
    return sha256_of(path) if path.is_file() else None


def foreign_files(output: Path) -> list[str]:
    """Files that no build of ours has written, relative to the folder."""
    files = (path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    return sorted(name for name in files if not _OWN_FILES.fullmatch(name))
