"""What stands at the output already, and whether a build may touch it."""

from pathlib import Path

from meloformer.errors import ShardError
from meloformer.shards.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    ShardSettings,
    changed_settings,
    check_files,
    check_tokenizer,
    load_manifest,
    sha256_of,
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
    if not (output / MANIFEST_NAME).is_file():
        raise ShardError(
            f"--output {output}: found something that is no shard folder (no {MANIFEST_NAME}), "
            "nothing was written; give another --output"
        )
    if not overwrite:
        raise ShardError(
            f"--output {output} holds shards already, {_difference(output, settings, name, survey)}"
            "; nothing was written: use them, add to them with --append, give another --output, or "
            "replace them with --overwrite"
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
            "nothing was written"
        )
    if changed := changed_settings(manifest.settings, settings):
        raise ShardError(
            f"--append to {output}: it was made with other settings ({', '.join(changed)}); give "
            "the settings of its manifest, or make a new folder from all the files"
        )
    if foreign := foreign_files(output):
        raise ShardError(
            f"--append to {output}: found {foreign[0]}, which is no file of a shard folder; move "
            f"it away ({len(foreign)} such in all)"
        )


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


def _difference(output: Path, settings: ShardSettings, name: str, survey: Survey) -> str:
    try:
        old = load_manifest(output)
    except ShardError as error:
        return f"which this version cannot read ({error})"
    differences = changed_settings(old.settings, settings)
    if old.inputs[-1].fingerprint != survey.fingerprint:
        differences.append(f"input {old.inputs[-1].name} -> {name} (names or sizes differ)")
    if len(old.inputs) > 1:
        differences.append(f"{len(old.inputs) - 1} inputs appended")
    if old.tokenizer_fingerprint != vocabulary.fingerprint():
        differences.append("made with another vocabulary")
    return (
        "made otherwise: " + ", ".join(differences)
        if differences
        else "made from the same input with the same settings"
    )
