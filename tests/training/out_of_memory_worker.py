"""One rank of a run whose last rank has little memory from a moment on.

    MOMENT=trial|step python out_of_memory_worker.py <flags of launch/train.py>

`trial` limits it before the first step, `step` after the first checkpoint.
"""

import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from meloformer.command_line import run_recipe
from meloformer.training.config import TrainConfig
from meloformer.training.leaving import leave_together
from meloformer.training.loop import train
from meloformer.training.prepare import prepare
from meloformer.training.session import Session
from meloformer.training.step import Progress

# Room for what is small; the batches of the test need several times as much.
ROOM = 24 << 20


def limit_memory() -> None:
    """Let this process have no more than it has now, and a little."""
    allowed = psutil.Process().memory_info().vms + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def main(flags: TrainConfig) -> None:
    with leave_together():
        session = Session(prepare(flags))
        save = session.save

        def save_and_limit(progress: Progress) -> None:
            save(progress)
            session.ranks.barrier()
            limit_last()

        def limit_last() -> None:
            if session.ranks.rank == session.ranks.world_size - 1:
                limit_memory()

        if os.environ["MOMENT"] == "trial":
            limit_last()
        else:
            session.save = save_and_limit  # type: ignore[method-assign]
        try:
            train(session)
        finally:
            session.close()


if __name__ == "__main__":
    run_recipe(main, TrainConfig)
