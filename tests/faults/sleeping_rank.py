"""launch/train.py, in which one rank falls asleep in a step of its first start.

python tests/faults/sleeping_rank.py RANK STEP launch/train.py ...
"""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from meloformer.training import accumulation  # noqa: E402
from meloformer.training.step import StepCounts  # noqa: E402

count = accumulation.count_step
rank, step = map(int, sys.argv[1:3])
num_counted = 0


def count_step(*arguments: Any) -> StepCounts:
    """The real one, but for one step of one rank."""
    global num_counted
    num_counted += 1
    if num_counted == step:
        time.sleep(1e6)
    return count(*arguments)


if __name__ == "__main__":
    del sys.argv[:3]
    if int(os.environ["RANK"]) == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        accumulation.count_step = count_step  # type: ignore[assignment]
    runpy.run_path(sys.argv[0], run_name="__main__")
