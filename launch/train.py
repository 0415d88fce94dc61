"""Train a MuseFormer on a shard folder.

One process, the newest folder of data_shards/, on the GPU if there is one:
    python launch/train.py

Eight GPUs, by any launcher:
    torchrun --nproc_per_node 8 launch/train.py --data data_shards/<name> --output runs/<name>

    deepspeed --num_gpus 8 launch/train.py --config ds_configs/zero2.json --data data_shards/<name>

    accelerate launch launch/train.py --max_steps 2

Go on with a run that has stopped, with the flags of its start, on any number of ranks:
    python launch/train.py --output runs/<name> --resume auto

SIGTERM, SIGUSR1 or Ctrl-C, to any rank or to all: the step in progress is finished and saved, and
the run ends; a second Ctrl-C ends it at once.

The plan, memory and hours, and stop:
    python launch/train.py --dry_run
"""

if __name__ == "__main__":
    from meloformer.interrupts import listen

    listen()  # what follows imports for seconds

from collections.abc import Callable

import numpy as np
from rich.console import Console

from meloformer.command_line import run_recipe
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.museformer import MuseFormer
from meloformer.training.config import TrainConfig
from meloformer.training.leaving import leave_together
from meloformer.training.loop import train
from meloformer.training.outlook import outlook
from meloformer.training.prepare import prepare
from meloformer.training.samples import Sampler
from meloformer.training.session import Session

console = Console()


def main(flags: TrainConfig) -> int:
    """Prepare, say what will be done, train."""
    with leave_together():
        prepared = prepare(flags)
        if prepared.ranks.is_first:
            console.print(outlook(prepared))
            if prepared.is_done:
                console.print(f"all {prepared.num_steps} steps are done, and the model is written")
        if flags.dry_run or prepared.is_done:
            return 0
        session = Session(prepared)
        try:
            train(session, Sampler(compose))
        finally:
            session.close()
        return session.stopping.exit_status


def compose(model: MuseFormer, num_pieces: int, stop: Callable[[int], bool]) -> list[np.ndarray]:
    """Pieces for the ear, with the same draws after every validation."""
    controls, sampling = ControlConfig(bars=8), SamplingConfig()
    return generate(model, controls, sampling, num_samples=num_pieces, stop=stop)


if __name__ == "__main__":
    run_recipe(main, TrainConfig)
