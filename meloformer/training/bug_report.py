"""One file for whoever is to find a fault: what a run says of itself, and nobody's secrets."""

import json
import os
import platform
import time
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from meloformer.errors import ConfigError
from meloformer.training.checkpoint import FOLDER_NAME, step_folders
from meloformer.training.metrics import BYTES_PER_GIB, LOG_NAME, METRICS_NAME, VALIDATION_NAME
from meloformer.training.redaction import Redactor, this_machine
from meloformer.training.run_folder import RUN_NAME

MACHINE_NAME, PACKAGES_NAME, CHECKPOINTS_NAME = "machine.json", "packages.txt", "checkpoints.txt"
_MOST_BYTES = 8 << 20  # of the end of a file


def collect(
    run: Path, gpus: list[dict[str, Any]], *, num_lines: int, hide: tuple[str, ...] = ()
) -> dict[str, str]:
    """Texts of a report by the names of their files, without names, places and secrets.

    Args:
        run: a run folder, in any state.
        gpus: what is known of the GPUs of this machine, plain data.
        num_lines: of the end of logs and metrics.
        hide: words to be taken out besides what is found by itself.

    Raises:
        ConfigError: the folder holds nothing of a run.
    """
    named = {name: run / name for name in (RUN_NAME, LOG_NAME, METRICS_NAME, VALIDATION_NAME)}
    found = {name: path for name, path in named.items() if path.is_file()}
    if not found:
        raise ConfigError(
            f"--run {run}: found none of {', '.join(named)}; allowed: a run folder, as runs/<name>"
        )
    texts = {MACHINE_NAME: json.dumps(machine_facts() | {"gpus": gpus}, indent=2) + "\n"}
    texts[PACKAGES_NAME] = "".join(f"{line}\n" for line in installed_packages())
    for name, path in found.items():
        texts[name] = (
            path.read_text(errors="replace") if name == RUN_NAME else tail(path, num_lines)
        )
    texts[CHECKPOINTS_NAME] = "".join(f"{line}\n" for line in held_checkpoints(run))

    folders = {Path.cwd(): ".", Path(__file__).parents[2]: "<repository>", run: "<run>"}
    redactor = Redactor(this_machine(folders, owner_of=run), hide)
    redactor.learn(texts.values())
    return {name: _redacted(name, text, redactor) for name, text in texts.items()}


def write_report(path: Path, texts: Mapping[str, str]) -> None:
    """Write a zip that was not there before.

    Raises:
        ConfigError: it was, or it cannot be written.
    """
    try:
        with path.open("xb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as report:
            for name, text in texts.items():
                report.writestr(name, text)
    except FileExistsError as error:
        raise ConfigError(
            f"--output {path}: found a file of that name; allowed: a name that is free"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"--output {path}: cannot be written ({error}); allowed: a file in a folder that exists"
        ) from error


def default_name() -> Path:
    """A name that says nothing of the run, whose own may be telling."""
    return Path(time.strftime("bug-report-%Y%m%d-%H%M%S.zip", time.gmtime()))


def machine_facts() -> dict[str, Any]:
    """Versions and sizes, no names."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version()))
        if torch.cuda.is_available()
        else None,
        "cpu_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / BYTES_PER_GIB, 1),
    }


def installed_packages() -> list[str]:
    """Name and version of every package, as pip pins them; without where they came from."""
    found = {(each.metadata["Name"], each.version) for each in metadata.distributions()}
    return sorted((f"{name}=={version}" for name, version in found), key=str.lower)


def held_checkpoints(run: Path) -> list[str]:
    """A line for each checkpoint: its name and bytes."""
    lines = []
    for folder in step_folders(run):
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        lines.append(f"{FOLDER_NAME}/{folder.name} {sum(sizes):,} bytes in {len(sizes)} files")
    return lines or ["none"]


def tail(path: Path, num_lines: int) -> str:
    """The last lines of a text file, however long it is."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _MOST_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    if size > _MOST_BYTES:
        lines = lines[1:]  # cut in its middle
    return "".join(lines[-num_lines:])


def _redacted(name: str, text: str, redactor: Redactor) -> str:
    if name.endswith(".jsonl"):
        return redactor.lines(text)
    if name.endswith(".json"):
        try:
            return json.dumps(redactor.json(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
        except ValueError:
            return redactor.text(text)
    return redactor.text(text)
