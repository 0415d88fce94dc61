"""The GPU report: every part in a process of its own, one JSON, goals beside what was measured."""

import functools
import itertools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from meloformer.benchmarks import attention_bench
from meloformer.benchmarks.bench_tables import plain, rounded, table_of
from meloformer.benchmarks.child_runs import run_child
from meloformer.benchmarks.gpu_parts import DEFAULT_RULE, Child
from meloformer.benchmarks.proof import number_text, without_paths
from meloformer.benchmarks.speed_claims import SPEED
from meloformer.benchmarks.workload import Workload

# What a report says of each rule; None where nothing was measured.
_OF_A_RULE = (
    *("tokens_per_second", "mfu", "speedup_8k", "speedup_16k", "speedup_32k", "graphs", "busy"),
    *("cold_s", "warm_s", "peak_predicted", "peak_measured"),
)
_LISTS = ("attention", "train", "steps", "phases", "children")
# What has to be the same for figures to stand in one report.
_SAME = ("device", "driver", "cuda", "versions", "commit", "data")


def run_report(
    children: Sequence[Child],
    folder: Path,
    *,
    root: Path,
    minutes: float,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], KeyboardInterrupt | None]:
    """Run all children, one after the other, in a limited time.

    Each is sure of the seconds that are modelled for it as long as no other takes more than it
    has; what the earlier ones leave over is for whichever needs it first.

    Args:
        children: in the order of their weight: those for which no time is left are not run.
        folder: for their files.
        root: of the repository.
        minutes: for all of them together.
        say: takes a line on each.

    Returns:
        What they have found, and under `children` how each of them ended; the signal that has
        stopped it, if one has: what was found before stands.
    """
    deadline = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {name: [] for name in _LISTS}
    for number, child in enumerate(children):
        left = deadline - time.monotonic()
        spare = left - sum(one.seconds for one in children[number:])
        limit = min(left, child.seconds + max(spare, 0))
        if left <= 0:
            found["children"].append(_row(child, 0.0, f"the {minutes:g} minutes were over"))
            continue
        say(f"{child.name}: {child.seconds:.0f} s modelled, at most {limit:.0f} s")
        began, signal = time.monotonic(), None
        try:
            reason = run_child(
                child.command,
                limit_seconds=limit,
                log=folder / f"{child.name}.log",
                cwd=root,
                environment=dict(child.environment),
                is_done=functools.partial(child.is_done, folder) if child.is_done else _never,
            ).reason
        except KeyboardInterrupt as error:
            reason, signal = "stopped by a signal, and with it the report", error
        seconds = time.monotonic() - began
        if reason.startswith("stopped after"):
            reason += f": more than the {child.seconds:.0f} s modelled; --minutes gives it more"
        try:
            _add(found, child.read(folder))
        except (OSError, ValueError, LookupError) as error:
            # The way it ended says more than the file that it has not written.
            reason = reason or f"it left no figures: {type(error).__name__} {error}"
        found["children"].append(_row(child, seconds, without_paths(reason)))
        if signal is not None:
            return found, signal
    return found, None


def with_figures(
    found: Mapping[str, Any], predict: Callable[[Mapping[str, Any]], int]
) -> dict[str, Any]:
    """Add what the goals ask for, and the figures of each rule.

    Args:
        found: as `run_report` returns it, or two of them merged.
        predict: peak bytes of a run.
    """
    report: dict[str, Any] = dict(found)
    told = [dict(run) for run in found["train"]]
    long_row = [dict(found["long_row"])] if "long_row" in found else []
    for run in told + long_row:
        run["peak_predicted"] = predict(run)
    runs = {run["model_size"]: run for run in told}
    report["train"] = told
    if long_row:
        report["long_row"] = long_row[0]
    report |= attention_bench.claimed(found["attention"])
    for size in ("base", "large"):
        ends = runs.get(size)
        if ends and ends["first_loss"] is not None and ends["last_loss"] is not None:
            report[f"loss_fall_{size}"] = ends["first_loss"] - ends["last_loss"]
    if large := runs.get("large"):
        report |= _named_percent(large, {"mfu": "train_mfu", "data_wait": "train_wait"})
        report |= {"train_tokens": large["tokens_per_second"], "cold_s": large["cold_s"]}
    # Of the run that goes on for long enough.
    busy = next((run["busy"] for run in told if run.get("busy_steps")), None)
    report["busy"] = None if busy is None else 100 * busy
    if small := runs.get("small"):
        workload = Workload(model_size="small", max_seq_len=small["max_seq_len"])
        report["epochs_hours"] = workload.hours(small["tokens_per_second"])
    errors = [
        abs(run["peak_predicted"] / run["peak_measured"] - 1)
        for run in told + long_row
        if run["peak_measured"]
    ]
    if errors:
        report["peak_error"] = 100 * max(errors)
    beyond = [
        max(0, row["graphs"] - row["graphs_declared"]) for row in found["steps"] if "graphs" in row
    ]
    if beyond:
        report["graphs_beyond"] = sum(beyond)
    report["rules"] = _rules(report)
    return {name: value for name, value in report.items() if value is not None}


def merged(earlier: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier report of the same commit with what was measured again in its place.

    Args:
        earlier: as it was written.
        found: as `run_report` returns it.
    """

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("name", "level", "tokens", "model_size", "rule"))

    both = {**earlier, **{name: value for name, value in found.items() if value is not None}}
    for name in _LISTS:
        rows = {key(row): row for row in (*earlier.get(name, ()), *found.get(name, ()))}
        both[name] = list(rows.values())
    return both


def goals_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each goal: what was measured, PASS or MISS; NOT RUN where nothing was."""
    rows = []
    for claim in SPEED:
        row: dict[str, Any] = {"id": claim.id, "goal": str(claim.goal), "unit": claim.unit}
        value = report.get(claim.id.replace("-", "_"))
        if value is None:
            rows.append(row | {"verdict": "NOT RUN"})
            continue
        verdict = "PASS" if claim.goal.is_met(value) else "MISS"
        rows.append(row | {"measured": float(value), "verdict": verdict})
    return rows


def read_earlier(path: Path, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """An earlier report, if its figures may stand beside those of today.

    Args:
        path: of the report, whether there is one or not.
        facts: circumstances of today.

    Returns:
        None where there is none that can be read, where commit, device, versions or shards are
        others, or where files have been changed since the commit: nobody knows which ones then.
    """
    try:
        earlier = json.loads(path.read_text())
        is_same = all(earlier.get(name) == facts.get(name) for name in _SAME)
    except (OSError, ValueError, AttributeError):
        return None
    return earlier if is_same and not facts["commit"].endswith("+") else None


def keep_aside(path: Path) -> Path | None:
    """Give a report another name, so that a new one can be written; None where there is none."""
    if not path.exists():
        return None
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
    aside = next(name for name in numbered if not name.exists())
    path.rename(aside)
    return aside


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write a report, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    unfinished.replace(path)


def report_name(device: str, commit: str) -> str:
    """File of a report.

    >>> report_name("NVIDIA H100 80GB HBM3", "1a2b3c4+")
    'gpu-nvidia-h100-80gb-hbm3-1a2b3c4+.json'
    """
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}-{commit}.json"


def goals_table(report: Mapping[str, Any]) -> Table:
    """Goals beside what was measured."""
    columns = {
        "id": ("", plain),
        "goal": ("goal", plain),
        "measured": ("measured", lambda value: number_text(float(f"{value:.4g}"))),
        "unit": ("unit", plain),
        "verdict": ("", plain),
    }
    title = f"{report['device']}, driver {report['driver']}, {report['commit']}"
    return table_of(title, goals_of(report), columns)


def children_table(report: Mapping[str, Any]) -> Table:
    """How each process of the report ended."""
    columns = {
        "name": ("measured", plain),
        "seconds": ("s", rounded(0)),
        "modelled": ("s, modelled", rounded(0)),
    }
    return table_of("parts", report["children"], columns)


def _rules(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of each rule; the default one's are those of the long run of large."""
    rules: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        return rules.setdefault(name, dict.fromkeys(_OF_A_RULE))

    for row in report["attention"]:
        if row["level"] == "model" and row["kernel"] != "causal" and "speedup" in row:
            of(row["name"])[f"speedup_{row['tokens'] // 1024}k"] = row["speedup"]
    for row in report["steps"]:
        if row.get("kernel") not in (None, "causal"):
            of(row["name"]).update({k: row[k] for k in ("tokens_per_second", "mfu", "graphs")})
            of(row["name"])["peak_measured"] = row.get("memory")
    for run in report["train"]:
        if run["model_size"] == "large" and run["rule"] == DEFAULT_RULE:
            told = {name: run[name] for name in _OF_A_RULE if run.get(name) is not None}
            of(run["rule"]).update(told)
            of(run["rule"])["warm_s"] = report.get("warm_s")
    return rules


def _named_percent(run: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    return {new: 100 * run[old] for old, new in names.items() if run[old] is not None}


def _add(found: dict[str, Any], figures: Mapping[str, Any]) -> None:
    for name, value in figures.items():
        if name in _LISTS:
            found[name] = [*found[name], *value]
        else:
            found[name] = value


def _row(child: Child, seconds: float, why: str) -> dict[str, Any]:
    return {
        "name": child.name,
        "part": child.part,
        "seconds": seconds,
        "modelled": child.seconds,
        "why": why,
    }


def _never() -> bool:
    return False
