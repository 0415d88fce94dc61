"""Where a build writes: a folder beside the output, renamed to it when all is there."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meloformer.errors import ShardError
from meloformer.shards.manifest import (
    MANIFEST_NAME,
    InputEntry,
    ShardSettings,
    changed_settings,
    load_manifest,
)
from meloformer.tokens import vocabulary

_OWN_FILES = re.compile(
    r"manifest\.json|rejected\.jsonl|(train|valid|test)/shard-\d+(\.tar|\.index\.npz)"
)


def check_output(
    output: Path, settings: ShardSettings, source: InputEntry, *, overwrite: bool
) -> None:
    """Refuse to write where something stands already.

    Args:
        output: the folder to be made.
        settings: settings of the build, to say how they differ from what is there.
        source: input of the build, likewise.
        overwrite: allow to replace a shard folder; never anything else.

    Raises:
        ShardError: the folder is taken.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST_NAME).is_file():
        raise ShardError(
            f"--output {output}: found something that is no shard folder (no {MANIFEST_NAME}), "
            "nothing was written; give another --output"
        )
    if not overwrite:
        raise ShardError(
            f"--output {output} holds shards already, {_difference(output, settings, source)}; "
            "nothing was written: use them, give another --output, or replace them with --overwrite"
        )
    if foreign := _foreign_files(output):
        raise ShardError(
            f"--output {output}: found {foreign[0]}, which is no file of a shard folder, and "
            f"--overwrite replaces the whole folder; move it away ({len(foreign)} such in all), or "
            "give another --output"
        )


def _foreign_files(output: Path) -> list[str]:
    """Files that no build of ours has written, relative to the folder."""
    files = (path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    return sorted(name for name in files if not _OWN_FILES.fullmatch(name))


def _difference(output: Path, settings: ShardSettings, source: InputEntry) -> str:
    try:
        old = load_manifest(output)
    except ShardError as error:
        return f"which this version cannot read ({error})"
    differences = changed_settings(old.settings, settings)
    if old.source.fingerprint != source.fingerprint:
        differences.append(f"input {old.source.name} -> {source.name} (names or sizes differ)")
    if old.tokenizer_fingerprint != vocabulary.fingerprint():
        differences.append("made with another vocabulary")
    return (
        "made otherwise: " + ", ".join(differences)
        if differences
        else "made from the same input with the same settings"
    )


@contextmanager
def staged(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that becomes `output` at the end, or vanishes after an error.

    Args:
        output: absent, empty, or a shard folder that may be replaced.
        overwrite: replace it.

    Raises:
        ShardError: another build writes there, or the disk refuses.
    """
    output = output.absolute()
    staging = output.parent / f".{output.name}.building"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with _locked(staging, output):
            _empty(staging)  # of what a killed build left
            try:
                yield staging
                _put_in_place(staging, output, overwrite=overwrite)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ShardError(
            f"--output {output} cannot be written ({error}); nothing was put in its place: "
            "make room or give another --output"
        ) from error


@contextmanager
def _locked(staging: Path, output: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process dies."""
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(
                f"--output {output}: another build writes there now; wait for it or give another "
                "--output"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _put_in_place(staging: Path, output: Path, *, overwrite: bool) -> None:
    if overwrite and (output / MANIFEST_NAME).is_file():
        replaced = output.parent / f".{output.name}.replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
        staging.rename(output)
        shutil.rmtree(replaced)
    else:
        staging.rename(output)  # an empty folder gives way, anything else is an error
