"""A stretch of a run trained once more, by the recipe that trained it, in a copy of its folder.

The run itself is read and never written: what goes on is a folder elsewhere with the run's facts
and one of its checkpoints.
"""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from meloformer.benchmarks.child_runs import run_child
from meloformer.benchmarks.scaling_runs import reason_of_run
from meloformer.training.checkpoint import FOLDER_NAME, step_folder
from meloformer.training.compare_runs import Steps, read_steps
from meloformer.training.config import TrainConfig
from meloformer.training.run_folder import RUN_NAME

# Of workers, which change no row: here no GPU waits for them.
_MAX_WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a stretch was to be trained with.

    Args:
        recipe: launch/train.py.
        run: folder of the run.
        checkpoint: step folder to go on from, verified.
        step: of that checkpoint.
        num_steps: to train.
        flags: of the recipe, by name, as `train_flags` gives them.
        limit_seconds: after which a start is given up.
    """

    recipe: Path
    run: Path
    checkpoint: Path
    step: int
    num_steps: int
    flags: dict[str, Any]
    limit_seconds: float

    @property
    def last_step(self) -> int:
        """Step after which the stretch ends."""
        return self.step + self.num_steps


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What came of a replay.

    Args:
        steps: lines of metrics.jsonl by their step, those of the stretch.
        why: what the recipe said where it failed; "" where it did not.
    """

    steps: Steps
    why: str = ""


def train_flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of launch/train.py that say what the settings of a run.json say.

    What stands at its default is left out, and what the recipe no longer knows.
    """
    flags: dict[str, Any] = {}
    for name, default in _defaults(TrainConfig).items():
        if isinstance(default, dict):
            inner = settings.get(name) or {}
            flags |= {n: inner[n] for n, d in default.items() if n in inner and inner[n] != d}
        elif name in settings and settings[name] != default:
            flags[name] = settings[name]
    return flags


def _defaults(config: Any) -> dict[str, Any]:
    """Defaults of a dataclass as JSON would say them, those of nested ones in dicts."""
    types = get_type_hints(config)
    found: dict[str, Any] = {}
    for field in fields(config):
        if is_dataclass(types[field.name]):
            found[field.name] = _defaults(types[field.name])
            continue
        value = field.default if field.default is not MISSING else None
        value = str(value) if isinstance(value, Path) else value
        found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Flags as they are typed; None leaves a flag out.

    >>> words_of({"data": ["a", "b"], "dry_run": True, "resume": None, "seed": 3})
    ['--data', 'a', 'b', '--dry_run', '--seed', '3']
    """
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value == []:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        else:
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def go_on(
    replay: Replay,
    folder: Path,
    *,
    ranks: int,
    threads: int | None = None,
    save_after: int = 0,
    on_step: Callable[[int], None] = lambda done: None,
) -> Replayed:
    """Train the stretch on some ranks.

    Args:
        replay: the stretch.
        folder: to be made; the copy of the run.
        ranks: processes.
        threads: of each; None leaves that to torch and the launcher.
        save_after: steps after which a checkpoint is made, the ranks are ended, and others go on
            from it; 0 trains without a break.
        on_step: told of the steps that are done.
    """
    try:
        (folder / FOLDER_NAME).mkdir(parents=True)
        shutil.copy(replay.run / RUN_NAME, folder)
        shutil.copytree(replay.checkpoint, step_folder(folder, replay.step))
    except OSError as error:
        # copytree gathers its errors, so their text may be long.
        return Replayed(steps={}, why=f"{folder}: cannot be written ({str(error)[:200]})")
    stops = [replay.last_step]
    if save_after:
        stops.insert(0, replay.step + save_after)
    for number, stop in enumerate(stops):
        saves = number < len(stops) - 1
        why = _start(
            replay, folder, ranks, threads, stop=stop, save_every=stop if saves else 0, tell=on_step
        )
        if why:
            return Replayed(steps={}, why=why)
    stretch = range(replay.step + 1, replay.last_step + 1)
    found = {step: line for step, line in read_steps(folder).items() if step in stretch}
    missing = len(stretch) - len(found)
    return Replayed(steps=found, why=f"{missing} steps are not in its metrics" if missing else "")


def _start(
    replay: Replay,
    folder: Path,
    ranks: int,
    threads: int | None,
    *,
    stop: int,
    save_every: int,
    tell: Callable[[int], None],
) -> str:
    """Start the recipe and end it when it is where it should stop; why it did not get there."""
    flags = replay.flags | {
        "output": folder,
        "resume": "auto",
        "save_every": save_every,
        "background_save": "off",
        # What follows no step: it would take time and change none.
        "validate_every": 0,
        "samples": 0,
        "wandb": None,
        "check_gradients": "off",
        "num_workers": min(int(replay.flags.get("num_workers", _MAX_WORKERS)), _MAX_WORKERS),
    }
    if not flags.get("lora"):
        flags["init_from"] = None  # the checkpoint brings all weights
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command += [str(replay.recipe), *words_of(flags)]
    environment = {}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if flags.get("device") == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}

    def is_done() -> bool:
        last = max(read_steps(folder), default=replay.step)
        tell(last - replay.step)
        return last >= stop and (not save_every or step_folder(folder, stop).is_dir())

    log = folder.with_suffix(".log")
    ended = run_child(
        command,
        limit_seconds=replay.limit_seconds,
        log=log,
        cwd=Path.cwd(),
        environment=environment,
        is_done=is_done,
    )
    if not ended.reason:
        return "" if is_done() else f"it ended before step {stop}"
    is_stopped = ended.reason.startswith("stopped")
    return ended.reason if is_stopped else reason_of_run(log.read_text(errors="replace"))
