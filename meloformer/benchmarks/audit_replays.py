"""Checks of a trained run that train a stretch of it again: after a resume, on other ranks.

How far losses may lie apart:

- on a CPU, with as many ranks and threads and the same instructions and libraries as the run: not
  at all;
- where only the order of sums differs (ranks, threads, another processor), both in float32:
  1e-4, which twenty steps of training stay far below;
- where bfloat16 is on either side, or a GPU, whose sums have no fixed order: a relative 2^-8, what
  bfloat16 keeps of one number. A limit by reasoning, not by measurement.
"""

import json
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from meloformer.benchmarks.audit import Advance, Audited, AuditRow, Check, Checks
from meloformer.benchmarks.replays import Replay, Replayed, go_on, train_flags
from meloformer.errors import CheckpointError
from meloformer.model.weights import step_of
from meloformer.training.checkpoint import TrainingState, check_files, step_folders
from meloformer.training.compare_runs import Steps, read_steps
from meloformer.training.ds_config import AUTO, load_ds_config
from meloformer.training.run_folder import Run, start_facts

OTHER_ORDER = 1e-4
BF16_RELATIVE = 2.0**-8
# What a start takes before its first step, apart from its steps; roughly, for an estimate.
_START_SECONDS = 25.0
_LIMIT_SECONDS = 600.0
# Steps of another device or load may take so many times as long as those of the run.
_PATIENCE = 50.0


class Replays:
    """Stretches of a run, trained again in folders that go when this is closed.

    Args:
        audited: the run.
        scratch: folder for copies of its checkpoint.

    Raises:
        CheckpointError: no checkpoint of the run is intact.
        ConfigError: its partitioning file is not there.
    """

    def __init__(self, audited: Audited, scratch: Path) -> None:
        self._audited, self._scratch = audited, scratch
        self._known: dict[tuple[int, str, int], Replayed] = {}
        self._checkpoint, self._later = find_stretch(
            audited.config.run, audited.config.num_steps, begun_at(audited.run)
        )
        self._state = TrainingState.load(self._checkpoint)
        settings = dict(audited.run.settings)
        if isinstance(settings["attention"], list):
            rule = scratch / "rule.json"
            rule.write_text(json.dumps(settings["attention"]))
            settings["attention"] = str(rule)
        self._flags = train_flags(settings) | {
            "data": list(audited.config.data),
            "cache_dir": audited.config.cache.cache_dir,
            "cache_gigabytes": audited.config.cache.cache_gigabytes,
            "compile_cache": None,
        }
        if self._last_step > audited.run.num_steps:
            self._flags["max_steps"] = self._last_step
        self._bf16 = load_ds_config(Path(settings["config"])).get("bf16", {}).get("enabled", AUTO)
        self.checks: Checks = {
            "resume": self._check_resume,
            "ranks": self._check_ranks,
        }

    @property
    def _last_step(self) -> int:
        return self._state.step + self._audited.config.num_steps

    def estimate(self) -> str:
        """What the training will take, in words."""
        wanted = [check for check in self._audited.config.checks if check in self.checks]
        # Two starts for each: one that goes on, and another one, on other ranks or after a save.
        num_starts = 2 * len(wanted) - (len(wanted) > 1)
        steps = (
            f"{num_starts} x {self._audited.config.num_steps} steps after step {self._state.step}"
        )
        start = self._start()
        a_step = self._step_seconds
        if start["device"] != self._audited.device or a_step is None:
            return f"{steps} are trained again; the run, on another device, does not say how long"
        whole = num_starts * (_START_SECONDS + a_step * self._audited.config.num_steps)
        return (
            f"{steps} are trained again, about {whole / 60:.0f} min at the {a_step:.2g} s a step "
            "of the run"
        )

    @property
    def _step_seconds(self) -> float | None:
        """Median over the steps of the run."""
        lines = read_steps(self._audited.config.run).values()
        seconds = [line["step_seconds"] for line in lines if line.get("step_seconds")]
        return statistics.median(seconds) if seconds else None

    def _check_resume(self, audited: Audited, tell: Advance) -> list[AuditRow]:
        """The run goes on after a checkpoint as it went on then, or as it does without a break."""
        device, start = audited.device, self._start()
        ranks = ranks_here(start["world_size"], device)
        if self._later:
            found = self._steps(ranks, device, tell)
            other = Replayed(steps=self._later)
            against = "metrics.jsonl"
            limit, why = self._limit_against_run(ranks)
        else:
            found = self._steps(ranks, device, tell)
            other = self._steps(ranks, device, tell, save_after=audited.config.num_steps // 2)
            against = "the same with a save and another start in the middle"
            is_exact = device == "cpu"
            limit = 0.0 if is_exact else self._bf16_limit(found.steps)
            why = "the same ranks on this device" if is_exact else "a GPU adds in no fixed order"
        what = f"losses after a resume of step {self._state.step}, against {against}"
        return [_row("resume", what, found, other, limit, f"{why}; {device}, ranks: {ranks}")]

    def _check_ranks(self, audited: Audited, tell: Advance) -> list[AuditRow]:
        """One rank and two train alike."""
        device = audited.device
        if device != "cpu" and torch.cuda.device_count() < 2:
            device = "cpu"
        one, two = (self._steps(ranks, device, tell) for ranks in (1, 2))
        is_bf16 = self._is_bf16(device) or device != "cpu"
        limit = self._bf16_limit(one.steps) if is_bf16 else OTHER_ORDER
        why = "bfloat16, or a GPU" if is_bf16 else "sums in another order"
        what = f"losses after step {self._state.step} on 1 and on 2 ranks"
        return [_row("ranks", what, one, two, limit, f"{why}; {device}")]

    def _start(self) -> dict[str, Any]:
        """Facts of the start of the run that trained the stretch."""
        starts = [start for start in self._audited.run.starts if start["step"] <= self._state.step]
        return starts[-1]  # a run that was set back began a later start at an earlier step

    def _limit_against_run(self, ranks: int) -> tuple[float, str]:
        """How far losses may lie from those that the run wrote down, and why."""
        start, device = self._start(), self._audited.device
        here = start_facts([""], ranks, torch.device(device), self._state.step, "")
        was_bf16 = self._state.ds_config["bf16"]["enabled"]
        if "cuda" in (start["device"], device) or was_bf16 or self._is_bf16(device):
            return self._bf16_limit(self._later), "bfloat16, or a GPU, on either side"
        differing = [name for name in ("device", "world_size") if start[name] != here[name]]
        # Threads are set to those of the run, where it says how many they were.
        hardware, now = (dict(facts["hardware"]) for facts in (start, here))
        differing += ["threads"] if hardware.pop("threads", None) is None else []
        now.pop("threads")
        differing += sorted(name for name in now if now[name] != hardware.get(name))
        differing += sorted(
            name
            for name in ("torch", "numpy", "deepspeed")
            if start["versions"].get(name) != here["versions"].get(name)
        )
        if differing:
            return OTHER_ORDER, f"other, or not recorded: {', '.join(differing)}"
        return 0.0, "the same device, ranks, threads and libraries"

    def _flags_elsewhere(self, device: str) -> dict[str, Any]:
        """What was asked for on the run's own device, and another one may not have."""
        if self._start()["device"] == device:
            return {}
        return {"fuse": "auto", "attention_precision": "auto"}

    def _is_bf16(self, device: str) -> bool:
        return device == "cuda" if self._bf16 == AUTO else bool(self._bf16)

    def _bf16_limit(self, steps: Steps) -> float:
        losses = [line["loss"] for line in steps.values() if line["loss"] is not None]
        return BF16_RELATIVE * max(losses, default=1.0)

    def _steps(self, ranks: int, device: str, tell: Advance, *, save_after: int = 0) -> Replayed:
        """The stretch, trained once."""
        key = (ranks, device, save_after)
        if key in self._known:
            return self._known[key]
        num_steps = self._audited.config.num_steps
        replay = Replay(
            recipe=self._audited.recipe,
            run=self._audited.config.run,
            checkpoint=self._checkpoint,
            step=self._state.step,
            num_steps=num_steps,
            flags=self._flags | self._flags_elsewhere(device) | {"device": device},
            limit_seconds=_LIMIT_SECONDS + _PATIENCE * (self._step_seconds or 1.0) * num_steps,
        )
        threads = self._start()["hardware"].get("threads") if device == "cpu" else None
        if threads and ranks != self._start()["world_size"]:
            threads = max(threads * self._start()["world_size"] // ranks, 1)
        what = f"steps on {ranks} rank{'s' * (ranks > 1)}{', saved halfway' * bool(save_after)}"
        tell(what, 0, num_steps)
        folder = self._scratch / f"{ranks}-{device}-{save_after}"
        self._known[key] = go_on(
            replay,
            folder,
            ranks=ranks,
            threads=threads,
            save_after=save_after,
            on_step=lambda done: tell(what, min(max(done, 0), num_steps), num_steps),
        )
        shutil.rmtree(folder, ignore_errors=True)  # a checkpoint takes room
        return self._known[key]


@contextmanager
def training_checks(audited: Audited) -> Iterator[tuple[Checks, str]]:
    """Checks that train stretches of a run again, and how long that will take, in words.

    Args:
        audited: the run. None of its checkpoints is looked at where no check wants one.

    Raises:
        CheckpointError: none of them is intact.
        ConfigError: the run's partitioning file is not there.
    """
    if not {"resume", "ranks"} & set(audited.config.checks):
        yield {}, "nothing is trained again"
        return
    with tempfile.TemporaryDirectory(prefix="audit-", dir=audited.config.scratch) as scratch:
        replays = Replays(audited, Path(scratch))
        yield replays.checks, replays.estimate()


def begun_at(run: Run) -> int:
    """Step since which a run was trained with the flags and on the hardware of its last start.

    run.json holds those flags alone: losses of a start with others are not to be repeated.
    """
    *earlier, last = run.starts
    step = last["step"]
    for start in reversed(earlier):
        if _how(start) != _how(last):
            break
        step = min(step, start["step"])
    return step


def _how(start: Mapping[str, Any]) -> dict[str, Any]:
    words = iter(start.get("command", ()))
    command = [word for word in words if word != "--resume" or not next(words, "")]
    names = ("world_size", "device", "hardware", "versions")
    return {name: start.get(name) for name in names} | {
        "command": [word for word in command if not word.startswith("--resume=")]
    }


def find_stretch(run: Path, num_steps: int, begun_at: int = 0) -> tuple[Path, Steps]:
    """The newest intact checkpoint with so many steps behind it in metrics.jsonl, and those steps.

    Steps after a rollback are none of a stretch that begins before: they had other data than those
    behind the checkpoint.

    Args:
        run: its folder.
        num_steps: of the stretch.
        begun_at: step before which no stretch begins.

    Returns:
        The checkpoint and the steps; where none has as many, the newest intact one and no steps.

    Raises:
        CheckpointError: none is intact.
    """
    steps = read_steps(run)
    newest, reasons = None, []
    for folder in reversed(step_folders(run)):
        first = step_of(folder) + 1
        later = {s: steps[s] for s in range(first, first + num_steps) if s in steps}
        if first <= begun_at or any(line.get("rolled_back") for line in later.values()):
            later = {}
        if newest is not None and len(later) < num_steps:
            continue
        try:
            check_files(folder)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        newest = newest or folder
        if len(later) == num_steps:
            return folder, later
    if newest is None:
        raise CheckpointError(
            f"{run}: none of its checkpoints is intact, the newest: {reasons[0]}; allowed: a run "
            "that has one, or --skip resume ranks"
        )
    return newest, {}


def ranks_here(world_size: int, device: str) -> int:
    """Ranks of a run if this host has room for as many, otherwise one."""
    room = torch.cuda.device_count() if device == "cuda" else max(os.cpu_count() or 1, 4)
    return world_size if world_size <= room else 1


def widest_gap(a: Steps, b: Steps) -> tuple[float, int]:
    """Largest difference of the losses of two stretches, and its step; infinite where one has
    trained on other tokens, or has no loss.
    """
    gaps = []
    for step in sorted(a.keys() | b.keys()):
        x, y = (each.get(step, {}) for each in (a, b))
        losses = (x.get("loss"), y.get("loss"))
        if x.get("tokens") != y.get("tokens") or losses.count(None) == 1:
            gaps.append((math.inf, step))
        elif losses[0] is not None:
            gaps.append((abs(losses[0] - losses[1]), step))
    return max(gaps, default=(math.inf, 0))


def _row(
    check: Check, what: str, found: Replayed, other: Replayed, limit: float, why: str
) -> AuditRow:
    failed = found.why or other.why
    gap, step = widest_gap(found.steps, other.steps)
    apart = (
        f"apart by {gap:.2g} at most, at step {step}," if gap else "equal to the last bit in all"
    )
    measured = failed or f"{apart} of {len(found.steps)} steps"
    return AuditRow(
        check=check,
        what=what,
        measured=measured,
        allowed=f"{limit:.2g}: {why}",
        is_ok=not failed and gap <= limit,
        figures={
            "largest": None if failed else gap,
            "step": step,
            "num_steps": len(found.steps),
            "limit": limit,
            "why": failed,
        },
    )
