import os
import resource

import pytest

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.batches.data_workers import load

NUM_BATCHES = 24


def test_a_step_of_many_micro_batches_does_not_end_at_the_usual_limit_of_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = len(os.listdir("/proc/self/fd")) + 64 if os.path.isdir("/proc") else 128
    if hard <= allowed:
        pytest.skip(f"this system allows {hard} open files and no more")

    def collate(spec: int) -> Batch:
        return collate_rows([[]], 128)

    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    try:
        step = list(load(range(NUM_BATCHES), collate, 1, False))  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(step) == NUM_BATCHES
