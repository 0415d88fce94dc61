"""Measure what MeloFormer claims, and write PROOF.json and PROOF.md.

    make proof                            # every row that this machine can run, long ones left out
    make proof ALL=1                      # those too
    make proof ONLY=files-per-second      # one row again; the others stay
    python launch/tools/proof.py --list

Run it alone on the machine. Rows that share a command are measured together. A row that cannot run
here says why, unless it was run before: then it stays as it was, with its commit and date.
"""

import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meloformer.benchmarks.circumstances import versions
from meloformer.benchmarks.claims import CLAIMS
from meloformer.benchmarks.proof import (
    SCRATCH,
    Circumstances,
    Claim,
    Command,
    Row,
    Verdict,
    as_markdown,
    judged,
    kept,
    number_text,
    without_figure,
)
from meloformer.command_line import EXIT_REFUSED, run_recipe
from meloformer.errors import ConfigError
from meloformer.training.commit import commit_of

ROOT = Path(__file__).resolve().parents[2]
_CORPORA = Path("../shared/corpora")
_LIMIT_SECONDS = 2 * 60 * 60
# A recipe that refuses what it is given, and a shell that does not find it.
_NO_FAULT_OF_THE_CLAIM = (EXIT_REFUSED, 126, 127)
_TIMED_OUT = 124
_TABLE_WIDTH = 110
# An outer make would speak through these.
_MAKE_VARIABLES = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "ALL", "ONLY")

console = Console(width=_TABLE_WIDTH)


@dataclass(frozen=True, kw_only=True)
class ProofConfig:
    """Flags of launch/tools/proof.py."""

    only: tuple[str, ...] = ()
    """Rows to run, by id; all others stay as they are."""
    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run rows that take long too."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the ids and stop."""
    output: Path = Path()
    """Folder of PROOF.json and PROOF.md."""


def main(config: ProofConfig) -> None:
    if config.list:
        print("\n".join(claim.id for claim in CLAIMS))
    else:
        rows = prove(CLAIMS, config, root=ROOT)
        console.print(as_table([row for row in rows if not config.only or row.id in config.only]))


def prove(claims: Sequence[Claim], config: ProofConfig, *, root: Path) -> list[Row]:
    """Run what is to be run; both files are written anew after each command."""
    if unknown := set(config.only) - {claim.id for claim in claims}:
        raise ConfigError(
            f"--only {' '.join(sorted(unknown))}: no such row; allowed: what --list prints"
        )
    circumstances = circumstances_of(root)
    reasons = {claim.id: why_not(claim.command, config, root) for claim in claims}
    earlier = read_rows(config.output)
    rows = {
        claim.id: kept_or_waiting(claim, earlier.get(claim.id), reasons[claim.id], circumstances)
        for claim in claims
    }
    chosen = [claim for claim in claims if claim.id in config.only or not config.only]
    for command in {claim.command.name: claim.command for claim in chosen}.values():
        asking = [claim for claim in chosen if claim.command.name == command.name]
        if reason := reasons[asking[0].id]:
            console.print(f"{command.name}: not run: {reason}", highlight=False)
            continue
        for row in measure(command, asking, circumstances, root):
            rows[row.id] = row
        write_rows(list(rows.values()), config.output)
    write_rows(list(rows.values()), config.output)
    return list(rows.values())


def kept_or_waiting(
    claim: Claim, earlier: Row | None, reason: str, circumstances: Circumstances
) -> Row:
    """What is known of a claim before anything is run."""
    if earlier is not None and (row := kept(claim, earlier)) is not None:
        return row
    waiting = "not run yet"
    if earlier is not None:
        another_way = "is measured in another way since it was run"
        waiting = earlier.why if earlier.verdict == "NOT RUN" else another_way
    return without_figure(claim, "NOT RUN", reason or waiting, circumstances)


def why_not(command: Command, config: ProofConfig, root: Path) -> str:
    """Why a command is not to be run; "" it can be."""
    waits = command.is_long and not (config.all or config.only)
    return why_not_here(command, root) or (
        "takes long; `ALL=1` or `ONLY=<id>` runs it" if waits else ""
    )


def why_not_here(command: Command, root: Path) -> str:
    """What this machine lacks for a command; "" nothing."""
    for recipe in re.findall(r"python (launch/\S+\.py)", command.line):
        if not (root / recipe).is_file():
            return f"{recipe} belongs to a part that is not built yet"
    for need in command.needs:
        if need == "gpu":
            if not torch.cuda.is_available():
                return "no GPU"
        elif need == "corpora":
            if not (root / _CORPORA).is_dir():
                return f"{_CORPORA} is missing"
        elif "." in need or "/" in need:
            if not (root / need).exists():
                return f"{need} is missing: docs/recipes tell how it is made"
        elif importlib.util.find_spec(need) is None:
            return f"the package {need} is missing; `make setup` installs it"
    return ""


def measure(
    command: Command, claims: Sequence[Claim], circumstances: Circumstances, root: Path
) -> list[Row]:
    """Run a command and read what its claims want to know; without figures, say how it ended."""
    (root / SCRATCH).mkdir(parents=True, exist_ok=True)
    figures_file = root / command.figures
    figures_file.unlink(missing_ok=True)
    log = figures_file.with_suffix(".log")
    status, said, seconds, line = 0, "", 0.0, ""
    for line in filter(None, (command.prepare, command.typed)):
        console.print(f"{command.name}: {line}", highlight=False, markup=False)
        start = time.perf_counter()
        status, said = run_line(line, log, root)
        seconds = time.perf_counter() - start
        if status:
            said = f"`{line}` ended with status {status}: {said}"
            break
    figures: dict[str, Any] = {}
    try:
        figures = dict(json.loads(figures_file.read_text()))
    except FileNotFoundError:
        if not status and "{figures}" in command.line:
            status, said = EXIT_REFUSED, f"`{command.typed}` wrote no figures"
    except (ValueError, TypeError) as error:
        status, said = EXIT_REFUSED, f"{command.figures} is no JSON object: {error}"
    if status and not figures:
        is_at_fault = command.is_promise or status not in _NO_FAULT_OF_THE_CLAIM
        is_miss = is_at_fault and line == command.typed
        verdict: Verdict = "MISS" if is_miss else "NOT RUN"
        return [without_figure(claim, verdict, said, circumstances) for claim in claims]
    figures["command_seconds"] = seconds
    return [judged(claim, figures, circumstances) for claim in claims]


def run_line(line: str, log: Path, root: Path) -> tuple[int, str]:
    """Status and last line of what a shell makes of it; all that it says goes into the log."""
    environment = {k: v for k, v in os.environ.items() if k not in _MAKE_VARIABLES}
    here = str(Path(sys.executable).parent)  # `python` is this one
    environment["PATH"] = os.pathsep.join((here, environment.get("PATH", os.defpath)))
    with log.open("wb") as file:
        process = subprocess.Popen(
            line,
            shell=True,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            status = _TIMED_OUT
        finally:
            if process.poll() is None:  # Ctrl-C too must leave nothing running
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status == _TIMED_OUT:
        return status, f"stopped after {_LIMIT_SECONDS:,} s"
    lines = [said.strip() for said in log.read_text(errors="replace").splitlines()]
    return status, next((said for said in reversed(lines) if said), "it said nothing")


def circumstances_of(root: Path) -> Circumstances:
    """The machine, what it runs, and the moment."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Circumstances(
        device=f"{cores} CPU cores ({cpu_name()}), {gpu}",
        versions=versions(),
        commit=commit_of(root),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else []
    return names[0] if names else platform.machine()


def read_rows(folder: Path) -> dict[str, Row]:
    """Rows of an earlier proof, by id."""
    path = folder / "PROOF.json"
    if not path.is_file():
        return {}
    try:
        return {row["id"]: Row(**row) for row in json.loads(path.read_text())["rows"]}
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path.name}: found {error}, expected what this program writes; delete it"
        ) from error


def write_rows(rows: Sequence[Row], folder: Path) -> None:
    """Both files, each whole or not at all."""
    text = json.dumps({"rows": [asdict(row) for row in rows]}, indent=2, ensure_ascii=False)
    for name, content in (("PROOF.json", text + "\n"), ("PROOF.md", as_markdown(rows))):
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(content)
        unfinished.replace(folder / name)


def as_table(rows: Sequence[Row]) -> Table:
    """Figures for people."""
    table = Table()
    for name in ("id", "measured", "goal", "unit", "", "why"):
        table.add_column(name, no_wrap=name != "why", overflow="fold")
    for row in rows:
        measured = "" if row.measured is None else number_text(row.measured)
        colour = {"PASS": "green", "MISS": "red", "NOT RUN": "dim"}[row.verdict]
        verdict = f"[{colour}]{row.verdict}[/]"
        table.add_row(row.id, measured, row.goal, row.unit, verdict, escape(row.why))
    return table


if __name__ == "__main__":
    run_recipe(main, ProofConfig)
