"""What stands at the output already, and whether a build may touch it."""

import os
from itertools import count
from pathlib import Path

from meloformer.errors import ShardError
from meloformer.file_sums import sha256_of
from meloformer.shards.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    ShardSettings,
    changed_settings,
    check_files,
    check_tokenizer,
    flat_settings,
    load_manifest,
)
from meloformer.shards.sources import Survey
from meloformer.shards.staging import foreign_files
from meloformer.tokens import vocabulary


def check_output(
    output: Path, settings: ShardSettings, name: str, survey: Survey, *, overwrite: bool
) -> None:
    """Refuse to write where something stands already.

    Args:
        output: the folder to be made.
        settings: settings of the build, to say how they differ from what is there.
        name: of the input, likewise.
        survey: of the input, likewise.
        overwrite: allow to replace a shard folder; never anything else.

    Raises:
        ShardError: the folder is taken.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    other = _free_name(output)
    if not (output / MANIFEST_NAME).is_file():
        found = f"no {MANIFEST_NAME}" if output.is_dir() else "a file"
        raise ShardError(
            f"--output {output}: found something that is no shard folder ({found}), nothing was "
            f"written; give another, such as --output {other}"
        )
    if not overwrite:
        said, may_append = _difference(output, settings, name, survey)
        raise ShardError(
            f"--output {output} holds shards already, {said}; nothing was written: "
            + ("use them, " if may_append is not None else "")
            + (f"add {name} to them (--output {output} --append), " if may_append else "")
            + f"replace them (--output {output} --overwrite), or make others (--output {other})"
        )
    if foreign := foreign_files(output):
        raise ShardError(
            f"--output {output}: found {foreign[0]}, which is no file of a shard folder, and "
            f"--overwrite replaces the whole folder; move it away ({len(foreign)} such in all), or "
            "give another --output"
        )


def check_append(output: Path, settings: ShardSettings, name: str, survey: Survey) -> None:
    """Refuse to add to what is no whole shard folder of the same settings.

    Args:
        output: the folder.
        settings: of the build.
        name: of the input.
        survey: of the input.

    Raises:
        ShardError: there is none, it is damaged, made otherwise, or holds this input already.
    """
    manifest = load_manifest(output)
    check_tokenizer(str(output), manifest)
    check_files(output, manifest)
    _check_what_appending_reads(output, manifest)
    last = manifest.inputs[-1]
    if (last.name, last.fingerprint) == (name, survey.fingerprint):
        raise ShardError(
            f"--append to {output}: {name} is what it was made from last (same names and sizes); "
            "nothing was written, and nothing is missing; to add others give another --midi"
        )
    if changed := changed_settings(manifest.settings, settings):
        raise ShardError(
            f"--append to {output}: it was made with other settings ({', '.join(changed)}); give "
            f"its own ({_as_flags(manifest.settings, settings)}), or make a new folder from all "
            f"the files, such as --output {_free_name(output)}"
        )
    if foreign := foreign_files(output):
        raise ShardError(
            f"--append to {output}: found {foreign[0]}, which is no file of a shard folder; move "
            f"it away ({len(foreign)} such in all)"
        )


def _as_flags(old: ShardSettings, new: ShardSettings) -> str:
    """What to type for the settings that differ."""
    before, after = flat_settings(old), flat_settings(new)
    return " ".join(f"--{name} {before[name]}" for name in before if before[name] != after[name])


def _check_what_appending_reads(output: Path, manifest: Manifest) -> None:
    """What a build would read only after hours."""
    if not (output / REJECTED_NAME).is_file():
        raise ShardError(
            f"--append to {output}: found no {REJECTED_NAME}; copy it again from where the shards "
            "were made"
        )
    for entry in manifest.shards():
        path = output / entry.signatures_file
        found = sha256_of(path)
        if found != entry.signatures_sha256:
            raise ShardError(
                f"{path}: found sha256 {found[:16]}, expected {entry.signatures_sha256[:16]}; copy "
                "it again from where the shards were made"
            )


def _free_name(output: Path) -> Path:
    """A folder beside it that is not there yet."""
    output = output if output.name else output.resolve()
    names = (output.with_name(f"{output.name}-{number}") for number in count(2))
    return next(path for path in names if not os.path.lexists(path))


def _difference(
    output: Path, settings: ShardSettings, name: str, survey: Survey
) -> tuple[str, bool | None]:
    """How what is there differs, and whether it can be added to; None if it cannot be read."""
    try:
        old = load_manifest(output)
    except ShardError as error:
        return f"which this version cannot read ({str(error).partition(';')[0]})", None
    differences = changed_settings(old.settings, settings)
    may_append = not differences
    if old.inputs[-1].fingerprint == survey.fingerprint:
        may_append = False
    else:
        differences.append(f"input {old.inputs[-1].name} -> {name} (names or sizes differ)")
    if len(old.inputs) > 1:
        differences.append(f"{len(old.inputs) - 1} inputs appended")
    if old.tokenizer_fingerprint != vocabulary.fingerprint():
        differences.append("made with another vocabulary")
        may_append = False
    if not differences:
        return "made from the same input with the same settings", False
    return "made otherwise: " + ", ".join(differences), may_append
