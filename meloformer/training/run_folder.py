"""A run's folder: made once, found again on resume, never taken over by another run."""

import fcntl
import json
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from meloformer.errors import CheckpointError, ConfigError
from meloformer.shards.download import without_credentials
from meloformer.training.checkpoint import check_files, newest_intact, step_folders
from meloformer.training.ema import check_same_average
from meloformer.training.lora import check_same_adapters
from meloformer.training.optimizer import check_same_optimizer

RUN_NAME = "run.json"
FORMAT_VERSION = 1
RESTART_COUNTERS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
LIBRARIES = ("meloformer", "torch", "deepspeed", "numpy", "safetensors", "transformers")

# A resumed run with another of these would train on other rows, or another function.
FIXED_SETTINGS = ("model_size", "max_seq_len", "seed", "collate", "attention")
# The same, with what a run did that is older than the flag.
_FIXED_LATER: dict[str, Sequence[str]] = {"freeze": ()}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What run.json says.

    Args:
        run_id: random; stands in every checkpoint.
        settings: resolved flags of the latest start.
        global_batch: rows of an optimizer step, fixed at the first start.
        num_steps: optimizer steps of the whole run, of the latest start.
        manifest_sha256: of the shard folder's manifest.
        starts: one entry per start: command, commit, ranks, hardware, versions, the step it began
            at.
        notes: choices made for the user.
    """

    run_id: str
    settings: dict[str, Any]
    global_batch: int
    num_steps: int
    manifest_sha256: str
    starts: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def data(self) -> list[str]:
        """Folders of --data, as typed; none where the run was given none.

        Older releases wrote several as one line with spaces between them.
        """
        found = self.settings.get("data") or []
        if isinstance(found, str):
            return [found] if Path(found).is_dir() else found.split()
        return list(found)

    def save(self, folder: Path) -> None:
        """Write run.json whole or not at all.

        Raises:
            ConfigError: the folder cannot be written.
        """
        temporary = folder / f"{RUN_NAME}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                file.write(json.dumps(asdict(self), indent=2) + "\n")
                # Renamed unsynced, a power cut may leave an empty file, and no run to resume.
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / RUN_NAME)
        except OSError as error:
            raise _unwritable(folder, error) from error

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """Read run.json.

        Raises:
            CheckpointError: it is missing, damaged, or of another format.
        """
        path = folder / RUN_NAME
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder}: found no {RUN_NAME}; allowed: the folder of a run, as runs/<name>; "
                "where it was lost, start anew with another --output"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({error}); expected the facts of a run; "
                "start anew with another --output"
            ) from error


def new_run_id() -> str:
    """Random name of a run."""
    return uuid.uuid4().hex


def wanted_resume(resume: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """What --resume means: as given, or auto where a launcher has restarted the run."""
    if resume is not None:
        return resume
    return "auto" if restarts(environment) else "none"


def check_restart(output: Path | None, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to start anew, in a folder named by the time, what a launcher wants to go on.

    Raises:
        ConfigError: the launcher has restarted the run and nothing says where it is.
    """
    counted = restarts(environment)
    if output is None and counted:
        raise ConfigError(
            f"found {counted} without --output: the run that was restarted cannot be found again; "
            "allowed: the first start, or any with --output; give --output runs/<name>"
        )


def restarts(environment: Mapping[str, str]) -> str:
    """The counter by which a launcher says that it has restarted the run; empty if it has not."""
    counts = {name: environment.get(name) or "0" for name in RESTART_COUNTERS}
    return ", ".join(f"{name}={count}" for name, count in counts.items() if int(count) > 0)


def lock_run(folder: Path) -> IO[bytes]:
    """Hold the run folder for this process; the system lets go of it when the process ends.

    Returns:
        The open lock, to be kept as long as the run.

    Raises:
        ConfigError: another process trains there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        # lockf and not flock: data workers that outlive a killed run do not inherit it.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.close()
        raise ConfigError(
            f"--output {folder}: another process trains there now; wait for it, stop it, or give "
            "another --output"
        ) from error
    return lock


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"--output {folder}: cannot be written ({error}); allowed: a folder, new or of this run, "
        "on a disk with room"
    )


def find_checkpoint(output: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, verified byte for byte; None starts at step 0.

    Args:
        output: the run folder.
        resume: `none`, `auto`, or a step folder of the run.

    Returns:
        The checkpoint, and a line for each one that was passed over.

    Raises:
        ConfigError: the folder holds a run and nothing asks to go on with it.
        CheckpointError: the named checkpoint is missing, damaged, or not of this run.
    """
    holds_run = (output / RUN_NAME).exists() or bool(step_folders(output))
    if resume == "none":
        if holds_run:
            raise ConfigError(
                f"--output {output} holds a run; allowed: a new folder, or --resume auto to go on"
            )
        return None, []
    if resume == "auto":
        if not holds_run:
            return None, [f"--resume auto: {output} holds no run; a new one starts"]
        found, passed_over = newest_intact(output)
        if not passed_over and found is None:
            return None, [f"--resume auto: {output} holds no checkpoint; it starts at step 1"]
        if passed_over and found is None:
            raise CheckpointError(
                f"--output {output}: none of its {len(passed_over)} checkpoints is intact, the "
                f"newest: {passed_over[0]}; allowed: another --output, to start anew"
            )
        return found, [f"passed over {reason}" for reason in passed_over]
    folder = Path(resume)
    if not folder.is_dir():
        raise CheckpointError(
            f"--resume {folder}: no such folder; allowed: none, auto, or one of "
            f"{output}/checkpoints: {[path.name for path in step_folders(output)]}"
        )
    if folder.resolve() not in [path.resolve() for path in step_folders(output)]:
        raise CheckpointError(
            f"--resume {folder}: found no checkpoint of --output {output}; allowed: one of its "
            "checkpoints/step-N; weights of another run enter through --init_from"
        )
    check_files(folder)
    return folder, []


def check_same_run(run: Run, settings: dict[str, Any], manifest_sha256: str) -> None:
    """Refuse to go on with settings under which the plan or the model is another one.

    Raises:
        ConfigError: names the setting and both values.
    """
    for name in FIXED_SETTINGS:
        if run.settings[name] != settings[name]:
            raise ConfigError(
                f"--{name} {settings[name]}: the run in --output was started with "
                f"{run.settings[name]}; allowed: the same, or another --output"
            )
    for name, without in _FIXED_LATER.items():
        asked, known = (plain.get(name, without) for plain in (settings, run.settings))
        if list(asked) != list(known):
            raise ConfigError(
                f"--{name} {' '.join(asked) or 'not given'}: the run in --output was started with "
                f"{' '.join(known) or 'none'}; allowed: the same, or another --output with "
                "--init_from"
            )
    check_same_optimizer(settings.get("optimizer", {}), run.settings.get("optimizer", {}))
    check_same_adapters(settings.get("adapters", {}), run.settings.get("adapters", {}))
    # Of a run that is older than the flag, too.
    check_same_average(settings.get("ema", 0.0), run.settings.get("ema", 0.0))
    if run.manifest_sha256 != manifest_sha256:
        raise ConfigError(
            f"--data, --data_weights: found manifest {manifest_sha256[:12]}, the run was started "
            f"with {run.manifest_sha256[:12]}; allowed: the same shards and weights, or another "
            "--output"
        )


def accumulation_for(global_batch: int, micro_batch_rows: int, world_size: int) -> int:
    """Micro-steps that hold an optimizer step's rows; the last may have zero-weight rows.

    >>> accumulation_for(48, 6, 1), accumulation_for(48, 6, 3)
    (8, 3)
    """
    return -(-global_batch // (micro_batch_rows * world_size))


def start_facts(
    command: list[str], world_size: int, device: torch.device, step: int, commit: str
) -> dict[str, Any]:
    """What to know of a start when its numbers are compared with another's."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    hardware: dict[str, Any] = {
        "cpu_cores": os.cpu_count(),
        "machine": platform.machine(),
        # Sums come out alike to the last bit with the same instructions on as many threads.
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["cuda"] = torch.version.cuda
    return {
        "step": step,
        "commit": commit,
        # The program's own path may lie under somebody's home.
        "command": [Path(command[0]).name, *map(without_credentials, command[1:])],
        "world_size": world_size,
        "device": device.type,
        "python": platform.python_version(),
        "versions": versions,
        "hardware": hardware,
    }
