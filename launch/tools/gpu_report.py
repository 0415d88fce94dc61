"""Measure attention and training on one GPU in minutes, and hold them against the goals.

    make gpu-report                                     # after make shard-data, if need be
    python launch/tools/gpu_report.py --data data_shards/<name>
    python launch/tools/gpu_report.py --parts attention memory --minutes 4
    python launch/tools/gpu_report.py --parts phases --minutes 3        # peak and seconds of each
    python launch/tools/gpu_report.py --parts choices --minutes 20      # blocks, heads, fusing, ...

Run it alone on the GPU. Each part runs in processes of its own, with time limits; what fails is a
row with its reason, and Ctrl-C ends it with what was measured until then. Writes
reports/gpu-<device>-<commit>.json, which `check_gpu.py` reads. Parts that were measured before stay
in it where commit, versions, driver and shards are the same; otherwise, and where files have been
changed since the commit, the earlier report is kept under another name.
Part graphs needs the code that part train has compiled. Without CUDA: one line, exit code 2.
"""

if __name__ == "__main__":  # before the imports that take seconds
    from meloformer.interrupts import end_at_signals

    end_at_signals()

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.choice_trials import choices_table
from meloformer.benchmarks.circumstances import circumstances
from meloformer.benchmarks.gpu_findings import absence
from meloformer.benchmarks.gpu_parts import DEFAULT_PARTS, Part, Scale, children_of
from meloformer.benchmarks.gpu_peaks import least_checkpointing, predicted_peak
from meloformer.benchmarks.gpu_phases import phases_table
from meloformer.benchmarks.gpu_report import (
    children_table,
    goals_table,
    keep_aside,
    merged,
    read_earlier,
    report_name,
    run_report,
    with_figures,
    write_report,
)
from meloformer.command_line import check_above_zero, check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.shards.reader import ShardFolder
from meloformer.training.config import newest_shards

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class GpuReportConfig:
    """Flags of launch/tools/gpu_report.py."""

    data: str | None = None
    """Shard folder; the newest of data_shards/ if not given."""
    parts: tuple[Part, ...] = DEFAULT_PARTS
    """What to measure; phases takes a minute and a half, choices some eight (modelled)."""
    minutes: float = 8.0
    """For all parts together; those that matter less give way."""
    output: Path = Path("reports")
    """Folder of the report."""
    json: Path | None = None
    """Another file for the same figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(f"--output {self.output}: found a file; allowed: a folder")
        check_above_zero(self, "minutes")
        if not self.parts:
            raise ConfigError(f"--parts: found none; allowed: {', '.join(get_args(Part))}")


def gpu_report(config: GpuReportConfig) -> None:
    if not torch.cuda.is_available():
        raise ConfigError(absence())
    console = table_console()
    data = Path(config.data or newest_shards()).resolve()
    ShardFolder.open(str(data))
    facts = circumstances(torch.device("cuda"), ROOT) | {"data": data.name}
    path = config.output / report_name(facts["device"], facts["commit"])
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as scratch:
        children = children_of(_scale(data), Path(scratch))
        found, stopped_by = run_report(
            [child for child in children if child.part in config.parts],
            Path(scratch),
            root=ROOT,
            minutes=config.minutes,
            say=lambda line: console.print(line, highlight=False),
        )
    earlier = read_earlier(path, facts)
    if earlier is not None:
        found = merged(earlier, found)
    elif kept := keep_aside(path):
        console.print(f"the earlier report is of other circumstances: kept as {kept}")
    report = with_figures(found, predicted_peak) | facts
    write_report(report, path)
    if config.json:
        write_report(report, config.json)
    console.print(children_table(report))
    if "choices" in report:
        console.print(choices_table(report["choices"], report.get("tiles_to_pin")))
    if report["phases"]:
        console.print(phases_table(report["phases"]))
    console.print(goals_table(report))
    console.print(f"wrote {path}", highlight=False)
    if stopped_by:
        raise stopped_by


def _scale(data: Path) -> Scale:
    scale = Scale(data=str(data))
    memory_bytes = torch.cuda.mem_get_info()[1]
    needed = least_checkpointing(scale.sizes[0], scale.long_row, memory_bytes)
    return replace(scale, long_row_checkpointing=needed)


if __name__ == "__main__":
    run_recipe(gpu_report, GpuReportConfig)
