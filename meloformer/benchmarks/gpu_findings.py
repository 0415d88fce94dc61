"""What was found out about the GPUs of this machine, and what stands in the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from meloformer.benchmarks.flex_trial import FlexTrial, try_flex
from meloformer.errors import ConfigError
from meloformer.training.cards import ARCHITECTURES, card_of
from meloformer.training.devices import (
    DeviceFacts,
    check_architecture,
    check_bf16,
    read_facts,
    remedy,
)
from meloformer.training.metrics import BYTES_PER_GIB


@dataclass(frozen=True, kw_only=True)
class GpuFinding:
    """One GPU.

    Args:
        index: of the device.
        facts: what torch and the driver say.
        trial: of FlexAttention; None where it was not tried.
    """

    index: int
    facts: DeviceFacts
    trial: FlexTrial | None

    @property
    def architecture(self) -> str:
        """The vendor's name of the generation, as far as it is known."""
        card, sm = card_of(self.facts.name), self.facts.sm
        if card:
            return card.architecture
        return ARCHITECTURES[sm].name if sm in ARCHITECTURES else "unknown"

    @property
    def problems(self) -> list[str]:
        """A line, with its remedy, for each thing that keeps it from training."""
        lines = []
        for check in (check_architecture, check_bf16):
            try:
                check(self.facts)
            except ConfigError as problem:
                lines.append(f"GPU {self.index}: {problem}")
        if self.trial and not self.trial.is_right:
            lines.append(
                f"GPU {self.index}: FlexAttention of torch {self.facts.torch_version} "
                f"{self.trial}; allowed: a torch whose kernel is right here"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        facts, trial = self.facts, self.trial
        return {
            "index": self.index,
            "name": facts.name,
            "architecture": self.architecture,
            "sm": f"sm_{facts.sm[0]}{facts.sm[1]}",
            "memory_gib": facts.memory_bytes / BYTES_PER_GIB,
            "driver": facts.driver,
            "bf16": facts.has_bf16,
            "torch": facts.torch_version,
            "arch_list": list(facts.arch_list),
            "torch_has_code": facts.is_supported,
            "flex": trial and {**vars(trial), "is_right": trial.is_right},
            "problems": self.problems,
        }


def look_at_gpus(*, with_flex: bool) -> list[GpuFinding]:
    """Every CUDA device of this machine.

    Args:
        with_flex: try FlexAttention too, on one device of each name that torch has code for.
    """
    findings: list[GpuFinding] = []
    trials: dict[str, FlexTrial] = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        facts = read_facts(device)
        assert facts is not None
        if with_flex and facts.is_supported and facts.name not in trials:
            with torch.cuda.device(device):
                trials[facts.name] = try_flex(device)
        findings.append(GpuFinding(index=index, facts=facts, trial=trials.get(facts.name)))
    return findings


def absence() -> str:
    """Why no GPU was found, in one line."""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"no CUDA device: torch {torch.__version__} is a build without CUDA; with an NVIDIA "
            f"GPU: {_any_build()}"
        )
    return (
        f"no CUDA device: torch {torch.__version__} finds no GPU or a driver older than its CUDA "
        f"{torch.version.cuda}; `nvidia-smi` says what there is"
    )


def findings_table(findings: Sequence[GpuFinding]) -> Table:
    """The GPUs for people."""
    table = Table(title="GPUs of this machine", title_justify="left")
    for name in ("GPU", "name", "architecture", "memory, GiB", "driver", "bf16", "torch", "flex"):
        table.add_column(name)
    for finding in findings:
        facts = finding.facts
        table.add_row(
            f"{finding.index}",
            facts.name,
            f"{finding.architecture}, sm_{facts.sm[0]}{facts.sm[1]}",
            f"{facts.memory_bytes / BYTES_PER_GIB:.1f}",
            facts.driver or "unknown",
            "yes" if facts.has_bf16 else "NO",
            f"{facts.torch_version}, {'' if facts.is_supported else 'NOT '}built for it",
            str(finding.trial or "not tried"),
        )
    return table


def _any_build() -> str:
    """The pip line for a GPU that nobody has seen yet."""
    newest = max(ARCHITECTURES)
    return remedy(
        DeviceFacts(
            name="",
            sm=newest,
            memory_bytes=0,
            has_bf16=True,
            driver=None,
            torch_version=torch.__version__,
            arch_list=(),
        )
    )
