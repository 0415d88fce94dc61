"""What is checked of a trained run, in what order, and what comes of it.

Each check has a measure, a limit and a verdict. What a limit rests on stands beside the check, in
audit_checks.py and audit_replays.py.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from rich.table import Table

from meloformer.command_line import check_at_least, check_json_file
from meloformer.errors import CheckpointError, ConfigError
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import find_model_folder, load_model, model_metadata
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import check_fingerprint
from meloformer.training.checkpoint import step_folders
from meloformer.training.data import manifest_sum
from meloformer.training.run_folder import Run

Check = Literal["split", "licences", "future", "neighbour", "copies", "resume", "ranks"]
Plant = Literal["leak", "copy", "split"]
CHECKS: tuple[Check, ...] = get_args(Check)
# What each plant has to make fail.
PLANTED: dict[Plant, tuple[Check, ...]] = {
    "leak": ("future", "neighbour"),
    "copy": ("copies",),
    "split": ("split",),
}
JSON_NAME = "audit.json"

# What is done, how much of it, and of how much.
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Flags of launch/tools/audit.py.

    Args:
        run: folder of the run, which is read and not written, but for the JSON file.
        data: the shards that it was trained on: folders or URLs, in the order of its --data.
        only: these checks alone.
        skip: all checks but these.
        plant: break something in memory and see the checks of it fail: leak shows every token its
            whole row, copy takes training pieces for generated ones, split holds a training piece
            out too. Only those checks run.
        json: file for the figures; audit.json in the run folder if not given, none with --plant.
        device: where the model runs and trains on.
        seed: of the places that are changed and of the pieces that are generated.
        num_windows: validation windows in which something is changed.
        num_pieces: pieces to generate.
        bars: of each of them.
        num_steps: optimizer steps to train again.
        licence: what an input may be used under, as `name=licence`, where no licence file lay
            beside it; may be given several times.
        scratch: folder for copies of a checkpoint; that of the system if not given.
        cache: files of remote shards.
    """

    run: Path
    data: tuple[str, ...]
    only: tuple[Check, ...] = ()
    skip: tuple[Check, ...] = ()
    plant: Plant | None = None
    json: Path | None = None
    device: DeviceName = "auto"
    seed: int = 0
    num_windows: int = 4
    num_pieces: int = 16
    bars: int = 16
    num_steps: int = 20
    licence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    scratch: Path | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        lowest = {"seed": 0, "num_windows": 2, "num_pieces": 1, "bars": 1, "num_steps": 2}
        check_at_least(self, lowest)
        if not self.data:
            raise ConfigError("--data: found none; allowed: the folders that the run trained on")
        for said in self.licence:
            if not all(said.partition("=")):
                raise ConfigError(f"--licence {said}: allowed: name=licence, as corpus=CC0")
        check_json_file(self.json)
        if self.scratch is not None and not os.access(self.scratch, os.W_OK | os.X_OK):
            raise ConfigError(
                f"--scratch {self.scratch}: found no folder that can be written; allowed: one with "
                "room for a checkpoint"
            )
        if not self.checks:
            raise ConfigError(
                f"--only {' '.join(self.only)}, --skip {' '.join(self.skip)}, --plant {self.plant}:"
                f" found no check left; allowed: some of {', '.join(CHECKS)}"
            )

    @property
    def checks(self) -> tuple[Check, ...]:
        """What is to be checked, in order."""
        wanted = PLANTED[self.plant] if self.plant else CHECKS
        return tuple(
            check
            for check in wanted
            if check not in self.skip and (not self.only or check in self.only)
        )

    @property
    def json_path(self) -> Path | None:
        """Where the figures go; those of a planted fault nowhere unless asked for."""
        if self.json is None and self.plant is None:
            return self.run / JSON_NAME
        return self.json


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One thing that was checked.

    Args:
        check: which.
        what: in words, where a check has several rows.
        measured: with its unit and how much was looked at.
        allowed: the limit, and what it rests on.
        is_ok: whether it is kept.
        figures: the numbers alone.
    """

    check: str
    what: str
    measured: str
    allowed: str
    is_ok: bool
    figures: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        return (self.what, self.measured, self.allowed, self.verdict)

    @property
    def verdict(self) -> str:
        """PASS or FAIL."""
        return "PASS" if self.is_ok else "FAIL"


@dataclass(frozen=True, kw_only=True)
class Audited:
    """A run and its data, opened and found to belong together.

    Args:
        config: the flags.
        recipe: launch/train.py.
        run: what run.json says.
        folders: the shards.
        model_folder: of the trained weights.
        device: type of the device.
    """

    config: AuditConfig
    recipe: Path
    run: Run
    folders: tuple[ShardFolder, ...]
    model_folder: Path
    device: str

    def model(self, dtype: torch.dtype = torch.float32) -> MuseFormer:
        """The trained model, in evaluation mode."""
        return load_model(self.model_folder, self.device).to(dtype)

    def describe(self) -> str:
        """What is audited, in a line."""
        step = model_metadata(self.model_folder).get("step", "unknown")
        names = " ".join(folder.storage.name for folder in self.folders)
        return f"{self.config.run}: weights after step {step}, on {self.device}, data {names}"


Checks = dict[Check, Callable[[Audited, Advance], list[AuditRow]]]


def open_audit(config: AuditConfig, recipe: Path) -> Audited:
    """Open a run and its data, and refuse what cannot be audited before anything is measured.

    Args:
        config: the flags.
        recipe: launch/train.py, which trains stretches again.

    Raises:
        CheckpointError: no run, no trained model in it, or one of another vocabulary.
        ShardError: a folder of --data is missing, damaged or of another vocabulary.
        ConfigError: the run was trained on other shards, or its folder takes no JSON file.
    """
    run = Run.load(config.run)
    folders = tuple(ShardFolder.open(folder, config.cache) for folder in config.data)
    weights = tuple(run.settings.get("data_weights") or (1.0,) * len(folders))
    found = manifest_sum(folders, weights) if len(weights) == len(folders) else "other folders"
    if found != run.manifest_sha256:
        raise ConfigError(
            f"--data {' '.join(folder.storage.name for folder in folders)}: found manifest "
            f"{found[:12]}, {config.run} was trained on {run.manifest_sha256[:12]} "
            f"({' '.join(run.data)}); allowed: the same shards, in that order"
        )
    model_folder = find_model_folder(config.run)
    check_fingerprint(model_metadata(model_folder).get("tokenizer", "none"), str(model_folder))
    if {"resume", "ranks"} & set(config.checks) and not step_folders(config.run):
        raise CheckpointError(
            f"{config.run}: found no checkpoint to go on from; allowed: a run that has one, or "
            "--skip resume ranks"
        )
    if config.json_path == config.run / JSON_NAME and not os.access(config.run, os.W_OK):
        raise ConfigError(
            f"--run {config.run}: cannot be written; allowed: --json with a file elsewhere"
        )
    return Audited(
        config=config,
        recipe=recipe,
        run=run,
        folders=folders,
        model_folder=model_folder,
        device=choose_device(config.device),
    )


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): (status.st_size, status.st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and (status := path.stat())
    }


def check_untouched(folder: Path, before: dict[str, tuple[int, int]]) -> AuditRow:
    """Whether an audit has left the run's folder as it was.

    Args:
        folder: of the run.
        before: `snapshot` of it when the audit began.
    """
    after = snapshot(folder)
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    named = f": {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}" if changed else ""
    return AuditRow(
        check="untouched",
        what="files of the run folder that the audit changed",
        measured=f"{len(changed)} of {len(before):,}{named}",
        allowed="0; a run that still trains changes its own" if changed else "0",
        is_ok=not changed,
        figures={"changed": changed},
    )


def run_audit(audited: Audited, checks: Checks, tell: Advance) -> Iterator[AuditRow]:
    """Check one thing after another.

    Args:
        audited: the run.
        checks: what looks at each, by its name.
        tell: told how far a check is.

    Yields:
        Rows as soon as they are known; the last one says whether the run folder is as it was.
    """
    before = snapshot(audited.config.run)
    for name in audited.config.checks:
        yield from checks[name](audited, tell)
    yield check_untouched(audited.config.run, before)


def table_head() -> Table:
    """A table for rows."""
    table = Table("check", "measured", "allowed", "", title_justify="left")
    for column in table.columns:
        column.overflow = "fold"
    return table


def save_audit(path: Path, audited: Audited, rows: list[AuditRow]) -> None:
    """Write all figures as one JSON object."""
    facts = {
        "run": audited.config.run.name,
        "run_id": audited.run.run_id,
        "model": audited.model_folder.relative_to(audited.config.run).as_posix(),
        "manifest_sha256": audited.run.manifest_sha256,
        "device": audited.device,
        "plant": audited.config.plant,
        "seed": audited.config.seed,
        "not_checked": [name for name in CHECKS if name not in audited.config.checks],
        "passed": all(row.is_ok for row in rows),
        "rows": [
            asdict(row) | {"figures": {n: _finite(v) for n, v in row.figures.items()}}
            for row in rows
        ],
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no word for what is no number or without end."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
