"""Where two runs part: the first step whose numbers differ, and what differs that could be why."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from meloformer.errors import CheckpointError, ConfigError
from meloformer.model.weights import load_weights
from meloformer.training.checkpoint import MODEL_NAME, STATE_NAME, step_folder, step_folders
from meloformer.training.metrics import METRICS_NAME, VALIDATION_NAME
from meloformer.training.run_folder import Run

# What a step says of its result; seconds and memory are never twice the same.
RESULTS = ("loss", "tokens", "lr", "grad_norm")
# Settings by which rows form steps; the rest of a plan is the manifest and the rows of a step.
_OF_THE_PLAN = ("seed", "collate", "max_seq_len", "data_weights", "augmentation")
# The folder's own name is no difference between two runs.
_NAMES = ("output",)

Steps = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """One thing that two runs say differently.

    Args:
        name: of the setting, fact or figure; a dot before each inner name.
        a: what the first run says; None where it says nothing.
        b: what the second says.
    """

    name: str
    a: Any
    b: Any

    @property
    def size(self) -> float | None:
        """How far two numbers lie apart; None for other things."""
        if any(not isinstance(value, (int, float)) for value in (self.a, self.b)):
            return None
        return abs(self.a - self.b)

    def __str__(self) -> str:
        words = f"{self.name} {_word(self.a)} / {_word(self.b)}"
        return words if self.size is None else f"{words} (apart by {self.size:.3g})"


@dataclass(frozen=True, kw_only=True)
class Parting:
    """A step whose results differ.

    Args:
        step: the first such step.
        results: those that differ.
    """

    step: int
    results: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs beside each other.

    Args:
        a: folder of the first run.
        b: folder of the second.
        tolerance: that the results were compared with.
        settings: flags that differ.
        facts: data, rows of a step, ranks, device and versions that differ.
        resumed: steps after which each run was started again.
        num_steps: steps that each run has written down.
        common_steps: steps that both have.
        parting: the first of them that differs; None where none does.
        largest: widest gap between the losses of a common step; None where the losses are equal.
        validation: the first validation that differs; None where none does.
        rows: whether both trained on the same rows, in words.
        checkpoint: the last step before the parting that both have a checkpoint of.
        weights_are_equal: in that checkpoint, None where there is none.
    """

    a: str
    b: str
    tolerance: float
    settings: tuple[Difference, ...]
    facts: tuple[Difference, ...]
    resumed: tuple[tuple[int, ...], tuple[int, ...]]
    num_steps: tuple[int, int]
    common_steps: int
    parting: Parting | None
    largest: Parting | None
    validation: Parting | None
    rows: str
    checkpoint: int | None
    weights_are_equal: bool | None

    @property
    def parts(self) -> bool:
        """Whether any result differs."""
        return self.parting is not None or self.validation is not None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"parts": self.parts} | asdict(self)

    def lines(self) -> list[str]:
        """The results in words; settings and facts make a table of their own."""
        within = f"within {self.tolerance:g}" if self.tolerance else "to the last bit"
        if self.parting is None:
            lines = [f"{self.common_steps} common steps: {', '.join(RESULTS)} are equal {within}"]
        else:
            lines = [f"the runs part at step {self.parting.step}:"]
            lines += [f"  {result}" for result in self.parting.results]
            same = self.parting.step - 1
            lines.append(f"  of {self.common_steps} common steps; up to step {same} equal {within}")
        if self.largest is not None:
            lines.append(f"widest gap: step {self.largest.step}, {self.largest.results[0]}")
        if self.validation is not None:
            found = ", ".join(str(result) for result in self.validation.results)
            lines.append(f"validations part after step {self.validation.step}: {found}")
        lines.append(f"rows: {self.rows}")
        for name, after, written in zip("AB", self.resumed, self.num_steps, strict=True):
            if written > self.common_steps:
                lines.append(f"{name} alone has {written - self.common_steps} more steps")
            if after:
                steps = ", ".join(map(str, after))
                lines.append(f"{name} was started again after step {steps}")
        if self.checkpoint is None:
            lines.append("no checkpoint in common before that")
        else:
            words = "its weights are equal" if self.weights_are_equal else "ITS WEIGHTS DIFFER"
            lines.append(f"last checkpoint in common: step {self.checkpoint}, {words}")
        return lines


def compare_runs(a: Path, b: Path, *, tolerance: float = 0.0) -> Comparison:
    """Read two run folders, finished or not, and find where they part.

    Args:
        a: a run folder.
        b: another.
        tolerance: results that lie no further apart count as equal, in their own unit up to 1
            and relative to their size above; numbers of tokens have to be the same.

    Raises:
        CheckpointError: a folder holds no run, or a damaged one.
        ConfigError: no step in common, so that nothing can be compared.
    """
    runs = Run.load(a), Run.load(b)
    steps = read_steps(a), read_steps(b)
    common = sorted(steps[0].keys() & steps[1].keys())
    if not common:
        found = f"{_range(steps[0])} in {a} and {_range(steps[1])} in {b}"
        raise ConfigError(
            f"found {found}; allowed: two runs that have a step in common; compare again when "
            "both have trained"
        )
    parting = _first_parting(*steps, RESULTS, tolerance)
    scores = _read_lines(a / VALIDATION_NAME), _read_lines(b / VALIDATION_NAME)
    flat = [{step: dict(_flat(line)) for step, line in each.items()} for each in scores]
    names = sorted({name for each in flat for line in each.values() for name in line})
    until = parting.step if parting else common[-1] + 1
    checkpoint = _last_common_checkpoint(a, b, before=until)
    starts = [_start_of(run, until) for run in runs]
    told = [dict(_flat(run.settings | {"data": " ".join(run.data)})) for run in runs]
    return Comparison(
        a=str(a),
        b=str(b),
        tolerance=tolerance,
        settings=tuple(d for d in _differences(*told) if d.name not in _NAMES),
        facts=tuple(_differences(*map(_facts, runs, starts))),
        resumed=(_resumed(runs[0]), _resumed(runs[1])),
        num_steps=(len(steps[0]), len(steps[1])),
        common_steps=len(common),
        parting=parting,
        largest=_widest_gap(*steps),
        validation=_first_parting(flat[0], flat[1], names, tolerance),
        rows=_compare_rows(runs, steps, (a, b), checkpoint),
        checkpoint=checkpoint,
        weights_are_equal=_weights_are_equal(a, b, checkpoint) if checkpoint else None,
    )


def read_steps(run: Path) -> Steps:
    """What metrics.jsonl says of each optimizer step; a last line cut short counts for nothing.

    Raises:
        CheckpointError: a line is no JSON object.
    """
    return {step: line for step, line in _read_lines(run / METRICS_NAME).items() if "loss" in line}


def _read_lines(path: Path) -> Steps:
    if not path.is_file():
        return {}
    found: Steps = {}
    for number, text in enumerate(path.read_text().splitlines(keepends=True), 1):
        try:
            line = json.loads(text)
            # A step may have more lines than one, as for what befell it.
            found[line["step"]] = found.get(line["step"], {}) | line
        except (ValueError, TypeError, KeyError) as error:
            if not text.endswith("\n"):
                break  # a killed process, or one that writes just now
            raise CheckpointError(
                f"{path}: line {number} cannot be read ({error!r}); expected the facts of a step"
            ) from error
    return found


def _first_parting(a: Steps, b: Steps, names: Sequence[str], tolerance: float) -> Parting | None:
    for step in sorted(a.keys() & b.keys()):
        found = tuple(
            Difference(name, a[step].get(name), b[step].get(name))
            for name in names
            if not _is_close(a[step].get(name), b[step].get(name), tolerance)
        )
        if found:
            return Parting(step=step, results=found)
    return None


def _is_close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))
    return a == b


def _widest_gap(a: Steps, b: Steps) -> Parting | None:
    losses = [(s, a[s]["loss"], b[s]["loss"]) for s in sorted(a.keys() & b.keys())]
    gaps = [Parting(step=s, results=(Difference("loss", x, y),)) for s, x, y in losses if x != y]
    # A loss that is not finite in one run alone lies further away than any number.
    sized = [(math.inf if (size := gap.results[0].size) is None else size, gap) for gap in gaps]
    return max(sized, key=lambda pair: pair[0])[1] if sized else None


def _compare_rows(
    runs: tuple[Run, Run], steps: tuple[Steps, Steps], folders: tuple[Path, Path], last: int | None
) -> str:
    """Whether both trained on the same rows: by what decides them, and by what they left behind."""
    plans = [
        {"manifest": run.manifest_sha256, "rows of a step": run.global_batch}
        | dict(_flat({name: run.settings.get(name) for name in _OF_THE_PLAN}))
        for run in runs
    ]
    causes = _differences(*plans)
    if causes:
        return f"other rows: {', '.join(map(str, causes))}"
    parting = _first_parting(*steps, ("epoch", "tokens"), 0.0)
    if parting:
        found = ", ".join(map(str, parting.results))
        return f"OTHER ROWS from step {parting.step} on, though the plan is the same: {found}"
    if last is not None:
        cursors = [_read_json(step_folder(run, last) / STATE_NAME).get("cursor") for run in folders]
        if cursors[0] != cursors[1]:
            return f"OTHER ROWS: the data positions of the checkpoints of step {last} differ"
    return "the same: manifest, plan, and the tokens of every common step"


def _last_common_checkpoint(a: Path, b: Path, *, before: int) -> int | None:
    """Newest step that both have a checkpoint of, whose state comes before another step's."""
    held = [{int(folder.name.partition("-")[2]) for folder in step_folders(run)} for run in (a, b)]
    return max((step for step in held[0] & held[1] if step < before), default=None)


def _weights_are_equal(a: Path, b: Path, step: int) -> bool:
    # Not by the sums of the files: those hold the names of their runs too.
    x, y = (load_weights(step_folder(run, step) / MODEL_NAME) for run in (a, b))
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); expected JSON") from error


def _facts(run: Run, start: Mapping[str, Any]) -> dict[str, Any]:
    """What is no flag and can change a result; of the start that did the step in question."""
    left_out = ("command", "step", "phases")  # how long phases took changes no result
    known = {name: value for name, value in start.items() if name not in left_out}
    known = {name: value for name, value in known.items() if not name.endswith("_s")}
    return {
        "data manifest": run.manifest_sha256[:12],
        "rows of a step": run.global_batch,
        "steps of the run": run.num_steps,
        **dict(_flat(known)),
    }


def _start_of(run: Run, step: int) -> dict[str, Any]:
    begun = [start for start in run.starts if start["step"] < step]
    return (begun or run.starts or [{}])[-1]


def _resumed(run: Run) -> tuple[int, ...]:
    return tuple(start["step"] for start in run.starts[1:])


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    names = [*a, *(name for name in b if name not in a)]
    return [Difference(n, a.get(n), b.get(n)) for n in names if a.get(n) != b.get(n)]


def _flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested objects by their dotted names.

    >>> dict(_flat({"a": 1, "b": {"c": 2, "d": [3]}}))
    {'a': 1, 'b.c': 2, 'b.d': [3]}
    """
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _word(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def _range(steps: Steps) -> str:
    return f"steps {min(steps)} to {max(steps)}" if steps else "no step"
