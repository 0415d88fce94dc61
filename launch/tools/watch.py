"""Watch a run, of a MuseFormer or a bridge, in the terminal, beside it or from another host.

It need not run any more.

    python launch/tools/watch.py --run runs/<name>
    python launch/tools/watch.py --run runs/<name> --once
    python launch/tools/watch.py --run runs/<name> --check

Reads run.json, metrics.jsonl, validation.jsonl and train.log, and writes nothing. `--check` prints
what goes wrong unseen, each with its figure and the remedy: loss trend, memory, recompiles, skipped
steps, failed saves, utilisation, data wait, slowest rank, ETA. Exit code: 0 where all is well, 1
where something is not, 2 where the folder holds no run.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.training.health import check_run
from meloformer.training.run_reader import RunReader, newest_folder
from meloformer.training.watch import findings_table, picture

# Of a picture in a file or a pipe, where nobody's terminal says how wide it may be.
_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Flags of launch/tools/watch.py.

    Args:
        run: run folder; the one of runs/ that was started last if not given.
        check: judge the run and end.
        once: draw once and end.
        every: seconds between two pictures.
    """

    run: Path | None = None
    check: bool = False
    once: bool = False
    every: float = 2.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.every <= 3600:
            raise ConfigError(f"--every {self.every:g}: allowed: 0.1 to 3600 seconds")


def main(config: WatchConfig) -> int | None:
    """Read, draw, wait."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    run = RunReader(config.run or newest_folder())
    if config.check:
        findings = check_run(run, time.time())
        console.print(findings_table(findings))
        return int(not all(finding.is_ok for finding in findings))
    if config.once or not console.is_terminal:
        console.print(picture(run, time.time(), console.width))
        return None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while not run.is_finished:
            run.refresh()
            live.update(picture(run, time.time(), console.width), refresh=True)
            time.sleep(config.every)
    console.print(picture(run, time.time(), console.width))
    return None


if __name__ == "__main__":
    run_recipe(main, WatchConfig, after_a_stop="the run goes on")
