"""Memory of a rank: states under every partitioning, and what fits."""

import pytest

from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.model.counts import num_parameters
from meloformer.model.memory import BatchSize
from meloformer.training.cards import CARDS
from meloformer.training.memory import Partitioning, forecast, largest_batch, longest_row
from meloformer.training.metrics import BYTES_PER_GIB
from tests.layouts import tiny_config


def small() -> MuseFormerConfig:
    return tiny_config(**vars(SIZES["small"]))


SIZE = BatchSize.of(6, 8192)
FULL_STATES = 2 + 4 + 12  # bf16 weight, fp32 gradient, fp32 master and two moments


@pytest.mark.parametrize(
    ("stage", "per_parameter"),
    # Under stage 1 the gradient of a micro-batch stays beside the sum.
    [(1, 2 + 2 + 4 + 12 / 8), (2, 2 + 4 / 8 + 12 / 8), (3, 2 + 2 / 8 + 4 / 8 + 12 / 8)],
)
def test_each_stage_shares_out_what_its_name_says(stage: int, per_parameter: float) -> None:
    found = forecast(small(), SIZE, Partitioning(stage=stage, world_size=8))
    assert found.states == pytest.approx(num_parameters(small()) * per_parameter, rel=1e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_rank_holds_everything_once_and_fp32_weights_are_their_own_masters_size(
    stage: int,
) -> None:
    parameters = num_parameters(small())
    again = stage == 1  # the gradient of a micro-batch beside the sum
    found = forecast(small(), SIZE, Partitioning(stage=stage))
    assert found.states == parameters * (FULL_STATES + 2 * again)
    fp32 = forecast(small(), SIZE, Partitioning(stage=stage, is_bf16=False))
    assert fp32.states == parameters * (4 + 4 + 12 + 4 * again)


def test_an_offloaded_optimizer_leaves_the_weights() -> None:
    found = forecast(small(), SIZE, Partitioning(is_offloaded=True))
    assert found.states == num_parameters(small()) * 2


@pytest.mark.parametrize(("ranks", "update"), [(1, 4 + 4 + 2), (4, (4 + 4 + 2) / 4 + 2)])
def test_muon_keeps_one_moment_of_a_matrix_and_wants_room_for_its_update(
    ranks: int, update: float
) -> None:
    moved = num_parameters(small()) // 8 * 4
    adamw, muon = (
        forecast(small(), SIZE, Partitioning(world_size=ranks, num_by_muon=count))
        for count in (0, moved)
    )
    assert adamw.optimizer - muon.optimizer == moved * 4 / ranks
    assert muon.end_of_step - adamw.end_of_step == moved * update
    # On the host nothing of the state counts, but the products are made on the device.
    offloaded = forecast(small(), SIZE, Partitioning(is_offloaded=True, num_by_muon=moved))
    assert offloaded.optimizer == 0 and offloaded.end_of_step > adamw.end_of_step


@pytest.mark.parametrize("checkpointing", ["none", "ffn", "layer"])
def test_the_largest_batch_fits_and_one_row_more_does_not(checkpointing) -> None:
    size = BatchSize.of(1, 8192, checkpointing=checkpointing)
    for card in CARDS:
        room = card.memory_gib * BYTES_PER_GIB
        rows = largest_batch(small(), size, Partitioning(), room)
        assert rows > 0, card.name
        for number, fits in ((rows, True), (rows + 1, False)):
            larger = BatchSize.of(number, 8192, checkpointing=checkpointing)
            assert (forecast(small(), larger, Partitioning()).peak <= room) == fits


def test_recomputing_more_makes_room_for_longer_rows_and_no_room_for_none() -> None:
    lengths = [
        longest_row(small(), BatchSize.of(1, 512, checkpointing=mode), Partitioning(), 24e9)
        for mode in ("none", "ffn", "layer")
    ]
    assert lengths == sorted(set(lengths))
    assert longest_row(small(), BatchSize.of(1, 512), Partitioning(), 1e6) == 0
    assert largest_batch(small(), BatchSize.of(1, 512), Partitioning(), 1e6) == 0
