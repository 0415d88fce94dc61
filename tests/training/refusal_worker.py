"""One rank that refuses, or waits for one that does: python refusal_worker.py --who all|0|1.

With --waits asleep the other rank waits for something that no broken connection ends, as a
collective on GPUs does. With --how killed it says nothing.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.training.leaving import leave_together
from meloformer.training.ranks import start_ranks
from meloformer.training.stopping import Stopping


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Args: who: rank that ends; how: it does; waits: how the other one waits."""

    who: str
    how: Literal["refusing", "killed"] = "refusing"
    waits: Literal["in a collective", "asleep"] = "in a collective"


def main(flags: Flags) -> None:
    with leave_together():
        ranks = start_ranks("cpu")
        if flags.how == "killed":
            Stopping(ranks)  # as a run has one, by which the ranks know each other's processes
            if flags.who == str(ranks.rank):
                os.kill(os.getpid(), signal.SIGKILL)
        elif flags.who in ("all", str(ranks.rank)):
            raise ConfigError("found one thing, allowed another")
        if flags.waits == "asleep":
            time.sleep(600)
        ranks.sum([1.0])


if __name__ == "__main__":
    run_recipe(main, Flags)
