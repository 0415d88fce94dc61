"""The report's part on phases: what it reads of a run, and real runs at toy scale."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from meloformer.benchmarks.gpu_parts import Scale, children_of
from meloformer.benchmarks.gpu_phases import is_told, phases_of, phases_table
from meloformer.benchmarks.gpu_report import run_report

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


def facts(phase: int, first: int, last: int, peak_gib: int) -> dict[str, Any]:
    return {
        "phase": phase,
        "first_step": first,
        "last_step": last,
        "micro_batch_rows": 6 if phase == 3 else 1,
        "num_workers": 0 if phase == 1 else 8,
        "seconds": 12.0,
        "seconds_in_steps": 3.5,
        "memory": peak_gib * GIB,
        "memory_held": 50 * GIB,
        "memory_host": 2 * GIB,
        "memory_workers": GIB,
    }


def write_run(folder: Path, *phases: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"starts": [{}, {"phases": phases}]}))
    return folder


def test_each_phase_is_a_row_beside_what_the_earlier_release_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "on", facts(1, 1, 4, 7), facts(2, 5, 8, 8), facts(3, 9, 12, 41))
    rows = phases_of(run, "on")
    assert [(row["name"], row["steps"]) for row in rows] == [
        (f"on, phase {number}", 4) for number in (1, 2, 3)
    ]
    rows += phases_of(write_run(tmp_path / "off", facts(3, 1, 12, 42)), "off")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(phases_table(rows))
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in console.export_text().splitlines()
        if "phase " in line
    ]
    assert [(line[0], line[6], line[-1]) for line in cells] == [
        ("on, phase 1", "7.00", "10"),
        ("on, phase 2", "8.00", "10"),
        ("on, phase 3", "41.00", "52"),
        ("off, phase 3", "42.00", "52"),
    ]


def test_a_run_has_told_all_only_when_its_last_phase_is_over(tmp_path: Path) -> None:
    assert not is_told(tmp_path / "absent", 12)
    assert not is_told(write_run(tmp_path / "begun"), 12)
    assert not is_told(write_run(tmp_path / "half", facts(1, 1, 4, 7)), 12)
    assert is_told(write_run(tmp_path / "whole", facts(1, 1, 4, 7), facts(3, 5, 12, 9)), 12)
    with pytest.raises(ValueError, match="no phase is over"):
        phases_of(tmp_path / "begun", "on")


@pytest.mark.slow
def test_runs_with_and_without_phases_tell_what_each_took(
    chorale_shards: Path, tmp_path: Path
) -> None:
    scale = Scale(
        data=str(chorale_shards),
        device="cpu",
        memory_size="tiny",
        seq_len=128,
        batch_size=2,
        num_workers=1,
        patience=10.0,
    )
    children = [one for one in children_of(scale, tmp_path) if one.part == "phases"]
    found, _ = run_report(children, tmp_path, root=ROOT, minutes=30, say=print)
    assert [row["why"] for row in found["children"]] == ["", ""]
    names = [f"on, phase {number}" for number in (1, 2, 3)] + ["off, phase 3"]
    assert [row["name"] for row in found["phases"]] == names
    assert [row["steps"] for row in found["phases"]] == [4, 4, 4, 12]
