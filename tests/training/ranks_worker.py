"""One rank of several, for all that is compared with what one process does.

    torchrun --nproc_per_node N tests/training/ranks_worker.py FOLDER SHARDS

The first rank writes what it measured to FOLDER/measured.json. One launch for many claims: starting
processes takes longer than most of what they do.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meloformer.training.ranks import start_ranks
from tests.training import (
    bad_steps_worker,
    check_gradients_worker,
    checkpoint_worker,
    gradient_worker,
)


def main(folder: Path, shards: Path) -> None:
    """Measure everything."""
    ranks = start_ranks("cpu")
    session = check_gradients_worker.open_session(
        shards, folder / "check", ranks, "zero2", is_bf16=False
    )
    measured = {
        "check": check_gradients_worker.measure(session),
        "gradients": gradient_worker.measure(ranks, "zero2"),
        # What one rank has written goes on here, and then on one rank again.
        "parts": checkpoint_worker.through(folder, "one", "several", checkpoint_worker.FEW),
        "bad_steps": bad_steps_worker.measure(shards, folder, ranks),
    }
    session.close()
    if ranks.is_first:
        (folder / "measured.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
