"""Write one zip for whoever is to find a fault, without names, places and secrets.

    python launch/tools/report_bug.py --run runs/<name>
    python launch/tools/report_bug.py --run runs/<name> --hide my-project --hide node17
    python launch/tools/report_bug.py --run runs/<name> --flex off    # the kernel is not tried

Inside: the GPUs as check_gpu finds them, versions, installed packages, run.json, the names and
sizes of checkpoints, and the ends of train.log, metrics.jsonl and validation.jsonl. No music, no
weights. Taken out: folders of users, names of users and hosts, addresses, URLs, and what looks like
a token, a key or a password or is named like one. What only you know goes with --hide. Look into
the zip before you send it: nothing is sent by this command, and no file is overwritten.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console

from meloformer.benchmarks.gpu_findings import absence, look_at_gpus
from meloformer.command_line import check_output_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.training.bug_report import collect, default_name, write_report
from meloformer.training.config import OnOff

console = Console()


@dataclass(frozen=True, kw_only=True)
class ReportBugConfig:
    """Flags of launch/tools/report_bug.py.

    Args:
        run: run folder, in any state.
        output: zip to be made; bug-report-<UTC time>.zip in this folder if not given.
        num_lines: of the ends of train.log, metrics.jsonl and validation.jsonl.
        hide: a word to be taken out wherever it stands; may be given several times.
        flex: compile FlexAttention on the GPUs found, which takes up to a minute.
    """

    run: Path
    output: Path = field(default_factory=default_name)
    num_lines: int = 200
    hide: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    flex: OnOff = "on"

    def __post_init__(self) -> None:
        check_output_file("--output", self.output)
        if self.output.exists():
            raise ConfigError(
                f"--output {self.output}: found a file of that name; allowed: a name that is free"
            )
        if self.num_lines < 1:
            raise ConfigError(f"--num_lines {self.num_lines}: allowed: 1 or more")
        if not all(self.hide):
            raise ConfigError("--hide: found an empty word; allowed: one or more characters")


def main(config: ReportBugConfig) -> None:
    gpus = [finding.to_json() for finding in look_at_gpus(with_flex=config.flex == "on")]
    texts = collect(
        config.run,
        gpus or [{"problems": [absence()]}],
        num_lines=config.num_lines,
        hide=config.hide,
    )
    write_report(config.output, texts)
    console.print(f"wrote {config.output}", markup=False, highlight=False, soft_wrap=True)
    for name, text in texts.items():
        lines = f"{text.count(chr(10)):,} lines, {len(text.encode()):,} bytes"
        console.print(f"  {name:18} {lines}", markup=False, highlight=False)
    console.print("look into it before you send it; --hide WORD takes out what only you know")


if __name__ == "__main__":
    run_recipe(main, ReportBugConfig)
