"""Checkpoints that are whole or absent: written aside, summed, synced, renamed, checked on load.

checkpoints/step-1000/
  manifest.json   sha256 and size of every other file
  state.json      step, data position, settings, format, tokenizer, number of ranks
  parts/          weights and optimizer state, one part per rank, for any number of ranks
  model/          config.json, model.safetensors: what others load
  model_ema/      the same with averaged weights, where the run keeps an average
  adapter/        adapters alone, as peft reads them, where the run trains some
"""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meloformer.errors import CheckpointError
from meloformer.file_sums import sha256_of
from meloformer.model.tensor_file import FileSum
from meloformer.model.weights import MODEL_NAMES, step_of
from meloformer.training.lora import ADAPTER_NAME

FORMAT_VERSION = 2
FOLDER_NAME = "checkpoints"
MANIFEST_NAME, STATE_NAME = "manifest.json", "state.json"
PARTS_NAME, MODEL_NAME = "parts", MODEL_NAMES["raw"]
_SUPERSEDED = ".superseded"
_STEP_FOLDER = re.compile(r"step-(\d+)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything about a moment of a run that is not a weight; plain data.

    Args:
        run_id: of the run folder, so that no run goes on from another's weights.
        step: optimizer steps done.
        cursor: data position after them, `Cursor.to_json()`.
        tokens_seen: targets trained on so far, over all ranks.
        skipped_steps: steps whose gradients were dropped.
        world_size: ranks that wrote the parts.
        ds_config: the partitioning they used.
        tokenizer_fingerprint: of the vocabulary.
        settings: resolved settings of the run.
        setbacks: counters of dropped steps and of rollbacks, as `Progress` takes them.
        recent_steps: loss and gradient norm of the last good steps, as `Judge` takes them.
        format_version: of this folder's layout.
    """

    run_id: str
    step: int
    cursor: dict[str, Any]
    tokens_seen: int
    skipped_steps: int
    world_size: int
    ds_config: dict[str, Any]
    tokenizer_fingerprint: str
    settings: dict[str, Any]
    setbacks: dict[str, int] = field(default_factory=dict)
    recent_steps: list[list[float]] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write state.json."""
        (folder / STATE_NAME).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "TrainingState":
        """Read state.json.

        Raises:
            CheckpointError: no such file, not JSON, or of another format.
        """
        path = folder / STATE_NAME
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); expected a state; take another checkpoint"
            ) from error
        found = data.get("format_version") if isinstance(data, dict) else None
        if found != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: found format {found!r}, expected {FORMAT_VERSION}; "
                "resume with the release that wrote it"
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise CheckpointError(
                f"{path}: found other fields than expected ({error}); take another checkpoint"
            ) from error


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return run / FOLDER_NAME / f"step-{step}"


def step_folders(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = {}
    for folder in (run / FOLDER_NAME).glob("step-*"):
        name = _STEP_FOLDER.fullmatch(folder.name)
        if name and folder.is_dir():
            found[int(name[1])] = folder
    return [found[step] for step in sorted(found)]


def begin_checkpoint(run: Path, step: int) -> Path:
    """Make the empty folder that a checkpoint is written into, and sweep up abandoned ones.

    Raises:
        OSError: the disk is full, or the run folder cannot be written.
    """
    for abandoned in (run / FOLDER_NAME).glob(".step-*"):
        _remove(abandoned)
    folder = run / FOLDER_NAME / f".step-{step}"
    (folder / PARTS_NAME).mkdir(parents=True)
    return folder


def finish_checkpoint(
    folder: Path,
    *,
    keep_last: int,
    keep_every: int = 0,
    sums: Mapping[str, FileSum] | None = None,
) -> Path:
    """Sum up, sync, and put a complete folder in place; then remove the oldest ones.

    Args:
        folder: from `begin_checkpoint`, written in full.
        keep_last: checkpoints to keep; 0 keeps all.
        keep_every: steps at whose multiples a checkpoint stays for good; 0 for none.
        sums: of files that were summed while they were written.

    Returns:
        The folder under its final name.

    Raises:
        CheckpointError: a file that was summed is not here, or of another size.
    """
    manifest = {"format_version": FORMAT_VERSION, "files": sum_files(folder, sums)}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    final = put_in_place(folder)
    run = final.parent.parent
    if keep_last:
        folders = step_folders(run)
        # Amid dropped steps, where a run may have been stopped, that is what it can go back to.
        good = next((folder for folder in reversed(folders) if is_good(folder)), None)
        for old in folders[:-keep_last]:
            if old != good and (not keep_every or step_of(old) % keep_every):
                _remove(old)
    drop_superseded(run)
    return final


def is_good(folder: Path) -> bool:
    """Whether the last step of a checkpoint was taken, not dropped."""
    try:
        return not TrainingState.load(folder).setbacks.get("skipped_in_a_row")
    except CheckpointError:
        return False


def put_in_place(folder: Path) -> Path:
    """Take the dot away from a folder's name, in the place of an older one: whole or absent."""
    final = folder.with_name(folder.name.removeprefix("."))
    if final.exists():
        shutil.rmtree(final)
    return rename_whole(folder, final)


def rename_whole(folder: Path, final: Path) -> Path:
    """Sync a folder, then give it another name, which nothing has yet: whole or absent."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    folder.rename(final)
    _sync(final.parent)
    return final


def whole_or_absent(folder: Path, write: Callable[[Path], object]) -> Path:
    """Write a folder of a finished run aside, then put it in place.

    Args:
        folder: as it will be called.
        write: fills the folder that it is given.

    Raises:
        CheckpointError: it cannot be written; nothing is left of it.
    """
    aside = folder.with_name(f".{folder.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        return put_in_place(aside)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: cannot be written ({error}); allowed: a disk with room; then write it with "
            "--resume auto"
        ) from error


def set_aside_later(run: Path, step: int) -> list[Path]:
    """Rename what a resumed run will make again: later checkpoints, and the finished model.

    None of them counts any more; a finished model would be taken for the newest of the run. They
    stay until the run has sealed something newer, in case that resuming was a mistake.
    """
    later = [f for f in step_folders(run) if int(f.name.removeprefix("step-")) > step]
    renamed = []
    finished = [*MODEL_NAMES.values(), ADAPTER_NAME]
    for folder in [*later, *(run / name for name in finished)]:
        if folder.is_dir():
            target = folder.with_name(folder.name + _SUPERSEDED)
            if target.exists():
                shutil.rmtree(target)
            renamed.append(folder.rename(target))
    return renamed


def drop_superseded(run: Path) -> None:
    """Remove what `set_aside_later` renamed: something newer is sealed."""
    for folder in (run / FOLDER_NAME, run):
        for superseded in folder.glob(f"*{_SUPERSEDED}"):
            _remove(superseded)


def sum_files(
    folder: Path, known: Mapping[str, FileSum] | None = None
) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file, by path relative to the folder.

    Args:
        folder: to look through.
        known: sums to believe, where a file of that size is there.

    Raises:
        CheckpointError: a file of the known ones is not.
    """
    known = known or {}
    for name, expected in known.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != expected.bytes:
            raise CheckpointError(
                f"{folder / name}: found {size} bytes, expected {expected.bytes}; --output must be "
                "on a disk that the hosts of all ranks share"
            )
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in known
    )
    # Hashing releases the interpreter's lock: threads share out the large parts.
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(sha256_of, paths))
    found = {
        path.relative_to(folder).as_posix(): FileSum(path.stat().st_size, digest).to_json()
        for path, digest in zip(paths, sums, strict=True)
    }
    return found | {name: file.to_json() for name, file in known.items()}


def check_files(folder: Path) -> None:
    """Compare a checkpoint with its manifest, byte for byte.

    Raises:
        CheckpointError: a file is missing, cut, changed, unreadable, or unknown to the manifest.
    """
    remedy = "take another checkpoint (--resume PATH)"
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint; expected a step folder; {remedy}")
    try:
        files = json.loads(path.read_text())["files"]
        expected = {name: FileSum(**facts) for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error!r}); expected a manifest; {remedy}"
        ) from error
    try:
        for name, wanted in expected.items():
            size = (folder / name).stat().st_size if (folder / name).is_file() else None
            if size != wanted.bytes:
                found = "no such file" if size is None else f"{size} bytes"
                raise CheckpointError(
                    f"{folder / name}: found {found}, expected {wanted.bytes} bytes; {remedy}"
                )
        found_sums = sum_files(folder)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: cannot be read ({error.strerror}); expected what "
            f"{MANIFEST_NAME} lists; {remedy}"
        ) from error
    found_sums.pop(MANIFEST_NAME)
    for name, facts in found_sums.items():
        digest = expected[name].sha256 if name in expected else "no such file"
        if facts["sha256"] != digest:
            raise CheckpointError(
                f"{folder / name}: found sha256 {facts['sha256']}, expected {digest}; {remedy}"
            )


def check_owner(state: TrainingState, folder: Path, run_id: str, fingerprint: str) -> None:
    """Refuse a checkpoint of another run or another vocabulary.

    Raises:
        CheckpointError: names both.
    """
    if state.run_id != run_id:
        raise CheckpointError(
            f"{folder}: found a checkpoint of run {state.run_id}, expected {run_id}; "
            "weights of another run enter through --init_from"
        )
    if state.tokenizer_fingerprint != fingerprint:
        raise CheckpointError(
            f"{folder}: found tokenizer {state.tokenizer_fingerprint[:12]}, expected "
            f"{fingerprint[:12]}; resume with the release that wrote it"
        )


def newest_intact(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and why each newer one was passed over."""
    passed_over = []
    for folder in reversed(step_folders(run)):
        try:
            check_files(folder)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        return folder, passed_over
    return None, passed_over


def _remove(folder: Path) -> None:
    """Remove what is no longer wanted; what cannot be is tried again with the next checkpoint.

    A network disk keeps what some other process still reads: no reason to call a checkpoint that
    is in place a failed one.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s: cannot be removed yet (%s)", folder, error)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network disks cannot sync a folder: no reason to have no checkpoints there.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
