import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.training.ranks import Ranks
from meloformer.training.validation import validate
from tests.layouts import tiny_config

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
