from pathlib import Path

import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.training.ranks import Ranks
from meloformer.training.validation import validate
from tests.layouts import tiny_config
from tests.training.launching import run, torchrun

# This machine need not have one: whatever is put there fails.
MPS = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("mps"))


def test_totals_stay_on_the_cpu_where_the_device_has_no_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MPS.sum([0.1, 0.2]) == [0.1, 0.2]
    assert MPS.mean_of_sums([torch.tensor(0.5), torch.tensor(0.25)]) == 0.75

    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    logits = torch.zeros(1, 128, tiny_config().vocab_size)
    nats = validate(lambda batch: logits, [collate_rows([[]], 128)], MPS)
    assert nats.num_targets == 0


_WORKER = """
import time
from datetime import timedelta
from meloformer.training import ranks
ranks.COLLECTIVE_TIMEOUT = timedelta(seconds=4)
here = ranks.start_ranks("cpu")
def slowly():
    time.sleep({seconds})
    return "done by the first"
print(here.on_first(slowly, is_long={is_long}), here.rank, flush=True)
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_what_the_first_rank_does_may_take_longer_than_a_collective_waits(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER.format(seconds=8, is_long=True))
    done = run([*torchrun(2), str(script)])
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")[:2]) == ["done by the first 0", "done by the first 1"]
    script.write_text(_WORKER.format(seconds=8, is_long=False))
    assert run([*torchrun(2), str(script)]).returncode != 0
