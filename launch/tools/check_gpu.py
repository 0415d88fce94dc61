"""Say whether the GPUs of this machine can train, and what a run costs on any known one.

    python launch/tools/check_gpu.py
    python launch/tools/check_gpu.py --flex off                  # nothing is compiled
    python launch/tools/check_gpu.py --pieces 529000 --epochs 3 --price_per_hour 8.9 --currency CNY
    python launch/tools/check_gpu.py --card H800 --price_per_hour 8.9 --currency CNY
    python launch/tools/check_gpu.py --model_size large --tokens_per_piece 10147 --mfu 0.45 --json

First the GPUs found: architecture, memory, driver, bf16, whether this torch has code for them, and
whether FlexAttention compiles there and is right, forward and backward. Then the known cards: hours
and cost of a run on one of them, measured where a report of `make gpu-report` says so, modelled
otherwise, and marked so.

Exit code: 0 where all is well or there is no GPU, 1 where a GPU cannot train with this torch (one
line each, with the remedy), 2 where a flag is impossible.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.card_table import (
    RATING_RULE,
    as_table,
    card_rows,
    formula,
)
from meloformer.benchmarks.gpu_findings import absence, findings_table, look_at_gpus
from meloformer.benchmarks.workload import Workload
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.training.cards import CARDS, find_card
from meloformer.training.config import OnOff
from meloformer.training.outlook import EXPECTED_MFU


@dataclass(frozen=True, kw_only=True)
class CheckGpuConfig:
    """Flags of launch/tools/check_gpu.py.

    Args:
        card: show this card alone, by the name of the table or of the device; all if not given.
        mfu: share of the data sheet's peak that the modelled rows reach; an assumption.
        price_per_hour: of one GPU; no cost if not given.
        currency: of the price, for the heading.
        reports: folder with the reports of `make gpu-report`.
        flex: compile FlexAttention on the GPUs found, which takes up to a minute.
        json: print one JSON object instead of tables.
        workload: what is trained.
    """

    card: str | None = None
    mfu: float = EXPECTED_MFU
    price_per_hour: float | None = None
    currency: str = "CNY"
    reports: Path = Path("reports")
    flex: OnOff = "on"
    json: bool = False
    workload: Workload = field(default_factory=Workload)

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise ConfigError(f"--mfu {self.mfu:g}: allowed: above 0, up to 1")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise ConfigError(f"--price_per_hour {self.price_per_hour:g}: allowed: 0 or more")


def check_gpu(config: CheckGpuConfig) -> int:
    cards = [find_card(config.card)] if config.card else CARDS
    findings = look_at_gpus(with_flex=config.flex == "on")
    problems = [line for finding in findings for line in finding.problems]
    rows = card_rows(
        config.workload,
        mfu=config.mfu,
        price_per_hour=config.price_per_hour,
        reports=config.reports,
        cards=cards,
    )
    if config.json:
        print(json.dumps(as_json(config, findings, rows), indent=2))
    else:
        console = table_console()
        console.print(findings_table(findings) if findings else absence(), soft_wrap=not findings)
        console.print(as_table(rows, config.workload, config.currency))
        for line in (formula(config.workload, config.mfu), RATING_RULE):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in problems:
        sys.stderr.write(f"{' '.join(line.split())}\n")
    return 1 if problems else 0


def as_json(config: CheckGpuConfig, findings: list, rows: list) -> dict[str, Any]:
    """Everything that the tables say."""
    return {
        "gpus": [finding.to_json() for finding in findings],
        "cards": [row.to_json() for row in rows],
        "workload": asdict(config.workload),
        "mfu": config.mfu,
        "price_per_hour": config.price_per_hour,
        "currency": config.currency,
        "formula": formula(config.workload, config.mfu),
        "rating": RATING_RULE,
    }


if __name__ == "__main__":
    run_recipe(check_gpu, CheckGpuConfig)
