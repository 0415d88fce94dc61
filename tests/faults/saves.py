"""Rows of the table of faults: what can happen to a save, or to its disk."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from meloformer.training.checkpoint import FOLDER_NAME, step_folder
from tests.faults.rows import SAVE_EVERY, Drill, FaultRow, SkippedError, fault
from tests.faults.runs import FaultError, limit

SECOND_SAVE = 2 * SAVE_EVERY
# Three checkpoints of the tiny model and what the run says of itself; not a fourth by far.
DISK_BYTES, ROOM_LEFT_BYTES = 160 << 20, 4 << 20
# More than a line of metrics.jsonl, less than the weights of the tiny model.
LARGEST_FILE_BYTES = 1 << 20
_NOT_SAVED = r"the checkpoint of step \d+ was not saved"


@fault("SIGKILL of the first rank in the middle of a save", ranks=2)
def kill_first_in_a_save(drill: Drill) -> FaultRow:
    """The rank that seals: half a checkpoint is left, and no word about it."""
    return _kill_in_a_save(drill, 0)


@fault("SIGKILL of the other rank in the middle of a save", ranks=2)
def kill_other_in_a_save(drill: Drill) -> FaultRow:
    """A rank that writes its part only."""
    return _kill_in_a_save(drill, 1)


def _kill_in_a_save(drill: Drill, victim: int) -> FaultRow:
    with drill.start(2) as run:
        run.wait_for_step(SAVE_EVERY + 1)
        process = run.ranks()[victim]
        aside = run.folder / FOLDER_NAME / f".step-{SECOND_SAVE}"
        run.wait_until(aside.exists, "save of the second checkpoint", poll_seconds=0.001)
        process.kill()
        # A rank that had written its part is not waited for: then the checkpoint may be sealed.
        was_open = aside.exists()
        struck = run.strike()
        detected, complaints = run.end_by_fault(struck, "SIGKILL")
        if not was_open:
            complaints.append("the save was over before the kill")
        if victim == 0 and step_folder(run.folder, SECOND_SAVE).exists():
            complaints.append("a checkpoint was sealed without the rank that seals")
    return drill.go_on(struck, detected_s=detected, complaints=complaints)


@fault("disk full during a save, then room again", ranks=2)
def disk_is_full(drill: Drill) -> FaultRow:
    """A small file system, filled by somebody else: one checkpoint is lost, the run goes on."""
    with small_disk(drill.output / "disk") as disk, drill.start(2, folder=disk / "run") as run:
        run.wait_for_step(SAVE_EVERY + 1)
        run.wait_until(step_folder(run.folder, SAVE_EVERY).exists, "first checkpoint")
        filler = disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _free_bytes(disk) - ROOM_LEFT_BYTES)
        struck = run.strike()
        run.wait_for_words(f"{_NOT_SAVED}: .*No space left on device", since=struck.num_said)
        detected = struck.seconds()
        filler.unlink()
        # In place: the next save that is sealed is the recovery.
        run.wait_until(step_folder(run.folder, 3 * SAVE_EVERY).exists, "third checkpoint")
        recovered = struck.seconds()
        run.wait_for_end()
        failed = step_folder(run.folder, SECOND_SAVE)
        return drill.judge(
            run,
            struck,
            detected_s=detected,
            recovered_s=recovered,
            complaints=[f"{failed} is there" if failed.exists() else ""],
        )


@fault("two saves in a row refused by the file system", ranks=2)
def saves_are_refused(drill: Drill) -> FaultRow:
    """No file may be large from some step on: the run ends, and goes on where there is room."""
    with drill.start(2) as run:
        run.wait_for_step(SAVE_EVERY + 1)
        run.wait_until(step_folder(run.folder, SAVE_EVERY).exists, "first checkpoint")
        for process in run.ranks().values():
            limit(process, psutil.RLIMIT_FSIZE, LARGEST_FILE_BYTES)
        struck = run.strike()
        run.wait_for_words(_NOT_SAVED, since=struck.num_said)
        detected = struck.seconds()
        reason = r"error: .*2 saves in a row failed.* make room on the disk"
        _, complaints = run.end_by_fault(struck, reason)
        reached = max(run.losses())
    return drill.go_on(struck, detected_s=detected, reached=reached, complaints=complaints)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own in memory; gone afterwards.

    Raises:
        SkippedError: this process may not mount one.
    """
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "meloformer", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SkippedError(f"no program {error.filename}") from error
    except subprocess.CalledProcessError as error:
        raise SkippedError(" ".join(error.stderr.split()) or str(error)) from error
    try:
        yield folder
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    for _ in range(10):
        with suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", str(folder)], check=True, capture_output=True)
            return
        time.sleep(0.5)  # something that was killed still holds it
    raise FaultError(f"{folder} cannot be unmounted")


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


ROWS = [kill_first_in_a_save, kill_other_in_a_save, disk_is_full, saves_are_refused]
