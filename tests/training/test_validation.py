from pathlib import Path

import pytest
import torch

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.batches.collate import Collator
from meloformer.batches.plan import PlanConfig
from meloformer.batches.stream import ValidationStream
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import KIND_OF, VOCAB_SIZE, Kind
from meloformer.training.nats import Nats
from meloformer.training.ranks import Ranks
from meloformer.training.validation import validate

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


TABLE = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


def logits_of(ids_BT: torch.Tensor) -> torch.Tensor:
    """A fixed random model: the logits depend on the current token alone."""
    return TABLE[ids_BT]


def predict(batch: Batch) -> torch.Tensor:
    return logits_of(batch.ids_BT)


def stream(shards: Path, rank: int, world_size: int, rows: int) -> ValidationStream:
    index = ShardFolder.open(shards).split("valid")
    return ValidationStream(
        Collator(index=index, attributes=ALL_ATTRIBUTES),
        PlanConfig(max_seq_len=512),
        rank=rank,
        world_size=world_size,
        micro_batch_rows=rows,
    )


@pytest.fixture(scope="module")
def found(chorale_shards: Path) -> Nats:
    return validate(predict, stream(chorale_shards, 0, 1, 2), ALONE)


def test_means_are_over_tokens_not_over_batches(found: Nats, chorale_shards: Path) -> None:
    total, count = 0.0, 0
    notes = inside = 0.0
    for batch in stream(chorale_shards, 0, 1, 1):
        for row in range(len(batch.ids_BT)):
            for t in range(batch.ids_BT.shape[1] - 1):
                target = int(batch.targets_BT[row, t])
                if target == IGNORE_INDEX:
                    continue
                nats = -torch.log_softmax(logits_of(batch.ids_BT[row, t]), -1)[target].item()
                total, count = total + nats, count + 1
                notes += KIND_OF[target] == Kind.PITCH
                inside += nats * bool(batch.layout.bar_BT[row, t + 1] >= 0)
    assert found.num_targets == count and found.num_notes == notes
    assert found.per_token == pytest.approx(total / count)
    assert found.per_note == pytest.approx(inside / notes)


def test_kinds_weighted_by_their_tokens_give_back_the_mean(
    found: Nats, chorale_shards: Path
) -> None:
    counts = torch.zeros(len(Kind))
    for batch in stream(chorale_shards, 0, 1, 1):
        targets = batch.targets_BT[batch.targets_BT != IGNORE_INDEX]
        counts += torch.bincount(torch.from_numpy(KIND_OF)[targets].long(), minlength=len(Kind))
    total = sum(found.per_kind[kind.name] * counts[kind] for kind in Kind if counts[kind])
    assert float(total / counts.sum()) == pytest.approx(found.per_token, rel=1e-5)


@pytest.mark.parametrize(("world_size", "rows"), [(2, 2), (3, 1)])
def test_ranks_together_find_what_one_rank_finds(
    world_size: int, rows: int, found: Nats, chorale_shards: Path
) -> None:
    class Adding(Ranks):
        """Stands for ranks that follow each other: what one adds, the next finds."""

        def sum_tensor(self, value: torch.Tensor) -> torch.Tensor:
            sums.append(value)
            return torch.stack(sums).sum(0)

    sums: list[torch.Tensor] = []
    for rank in range(world_size):
        ranks = Adding(
            rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu")
        )
        together = validate(predict, stream(chorale_shards, rank, world_size, rows), ranks)
    assert together.num_targets == found.num_targets
    assert together.per_token == pytest.approx(found.per_token, rel=1e-9)
    assert together.per_note == pytest.approx(found.per_note, rel=1e-9)
    assert together.per_kind == pytest.approx(found.per_kind, rel=1e-9)
