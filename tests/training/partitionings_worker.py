"""One rank of several: gradients under every partitioning, in both precisions.

    torchrun --nproc_per_node N tests/training/partitionings_worker.py FOLDER SHARDS

The first rank writes what it measured to FOLDER/measured.json.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meloformer.training.ranks import start_ranks
from tests.training import check_gradients_worker, gradient_worker

PARTITIONINGS = ("zero1", "zero2", "zero2_offload", "zero3")
PRECISIONS = ("fp32", "bf16")


def main(folder: Path, shards: Path) -> None:
    """Measure every partitioning, with fp32 and with bf16."""
    ranks = start_ranks("cpu")
    measured = {}
    for name in PARTITIONINGS:
        for precision in PRECISIONS:
            is_bf16 = precision == "bf16"
            gradients = gradient_worker.measure(ranks, name, is_bf16=is_bf16)
            session = check_gradients_worker.open_session(
                shards, folder / f"{name}-{precision}", ranks, name, is_bf16=is_bf16
            )
            check = check_gradients_worker.measure(session)
            session.close()
            measured[f"{name} {precision}"] = {"gradients": gradients, "check": check}
    if ranks.is_first:
        (folder / "measured.json").write_text(json.dumps(measured))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
