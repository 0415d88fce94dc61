"""launch/train.py, with an account of what each rank trains on, for test_resume.py.

    BATCHES=FOLDER torchrun --nproc_per_node N tests/training/recording_train.py FLAGS

Each rank adds a line a step to FOLDER/rank-N.jsonl: the pieces of its rows, by the plan, a sum over
the token ids and targets of each row, as they came from the data workers, and the seconds that the
rank has spent on its own in the step before.

With HOLD=STEP the ranks wait in that step until somebody ends them.
"""

import hashlib
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from meloformer.batches.batch import Batch  # noqa: E402
from meloformer.batches.stream import TrainStream  # noqa: E402
from meloformer.training.step import Clock  # noqa: E402

RANK = int(os.environ.get("RANK", "0"))
HOLD = int(os.environ.get("HOLD", "0"))


def main() -> None:
    """Train, and write down."""
    folder = Path(os.environ["BATCHES"])
    folder.mkdir(exist_ok=True)
    take, lap = TrainStream.__next__, Clock.lap
    own_seconds = 0.0
    with (folder / f"rank-{RANK}.jsonl").open("a", buffering=1) as lines:

        def take_and_tell(stream: TrainStream) -> list[Batch]:
            batches = take(stream)
            tell(stream, batches, own_seconds, lines)
            while stream.step == HOLD:
                time.sleep(1)
            return batches

        def lap_and_note(clock: Clock) -> None:
            nonlocal own_seconds
            lap(clock)
            own_seconds = clock.own_seconds

        TrainStream.__next__ = take_and_tell  # type: ignore[method-assign, assignment]
        Clock.lap = lap_and_note  # type: ignore[method-assign]
        runpy.run_path(str(ROOT / "launch/train.py"), run_name="__main__")


def tell(stream: TrainStream, batches: list[Batch], own_seconds: float, lines: TextIO) -> None:
    """Write down one step of one rank."""
    line = {
        "step": stream.step,
        "pieces": [key for of_ranks in stream.piece_keys() for key in of_ranks[RANK]],
        "rows": [row for batch in batches for row in rows_of(batch)],
        "own_seconds": own_seconds,
    }
    lines.write(json.dumps(line) + "\n")


def rows_of(batch: Batch) -> list[str]:
    """A sum of each row that holds a token; how far it is padded depends on the ranks."""
    is_token_BT = batch.layout.piece_BT >= 0
    return [
        hashlib.sha256(
            ids_T[is_token_T].numpy().tobytes() + targets_T[is_token_T].numpy().tobytes()
        ).hexdigest()[:16]
        for ids_T, targets_T, is_token_T in zip(
            batch.ids_BT, batch.targets_BT, is_token_BT, strict=True
        )
        if is_token_T.any()
    ]


if __name__ == "__main__":
    main()
