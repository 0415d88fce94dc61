"""Bytes of a step by formula, against every collective of the real loop on some ranks."""

import json
from pathlib import Path
from typing import Any

import pytest

from meloformer.benchmarks.bench_models import sized_config
from meloformer.errors import ConfigError
from meloformer.model.counts import num_parameters
from meloformer.training.traffic import Collective, parameter_sizes, step_traffic
from tests.training.launching import ROOT, run, torchrun
from tests.training.traffic_worker import ACCUMULATIONS, FEW, PARTITIONINGS, partitioning_file

WORKER = str(ROOT / "tests/training/traffic_worker.py")
TINY = sized_config("tiny", 128)
# As torch.distributed names them.
OPERATIONS = {
    "all_reduce": "all_reduce",
    "reduce": "reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
}
BYTES = {"bfloat16": 2, "float32": 4, "float64": 8, "uint8": 1}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(2, marks=[pytest.mark.distributed, pytest.mark.slow]),
        pytest.param(3, marks=[pytest.mark.distributed, pytest.mark.slow]),
    ],
)
def counted(
    request: pytest.FixtureRequest,
    chorale_shards: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[int, list[dict[str, Any]]]:
    """Ranks, and what the first of them saw; three divide nothing evenly."""
    folder = tmp_path_factory.mktemp("traffic")
    done = run([*torchrun(request.param), WORKER, str(chorale_shards), str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, json.loads((folder / f"{request.param}.json").read_text())


def modelled(partitioning: str, world_size: int, accumulation: int) -> list[Collective]:
    settings = partitioning_file(partitioning)
    return step_traffic(
        parameter_sizes(TINY),
        settings,
        world_size=world_size,
        accumulation=accumulation,
        is_bf16=settings["bf16"]["enabled"],
    )


def payloads(step: list[list[Any]]) -> dict[str, int]:
    """Bytes of a step by operation."""
    found: dict[str, int] = {}
    for operation, elements, dtype in step:
        name = OPERATIONS[operation]  # anything else has no place in a step
        num_bytes = elements * BYTES[dtype.removeprefix("torch.")]
        found[name] = found.get(name, 0) + num_bytes
    return found


def test_the_bytes_of_each_operation_are_those_that_the_real_loop_asks_for(
    counted: tuple[int, list[dict[str, Any]]],
) -> None:
    world_size, runs = counted
    assert len(runs) == len(PARTITIONINGS if world_size == 2 else FEW) * len(ACCUMULATIONS)
    for seen in runs:
        expected: dict[str, int] = {}
        for part in modelled(seen["partitioning"], world_size, seen["accumulation"]):
            expected[part.operation] = expected.get(part.operation, 0) + part.payload
        # Stage 3 learns the order of the weights in the first steps.
        found = payloads(seen["steps"][-1])
        assert found.keys() == expected.keys(), seen
        for operation, payload in expected.items():
            assert found[operation] == pytest.approx(payload, rel=0.01), (seen, operation)


def test_stages_1_and_2_call_as_often_as_the_model_says(
    counted: tuple[int, list[dict[str, Any]]],
) -> None:
    world_size, runs = counted
    for seen in runs:
        if partitioning_file(seen["partitioning"])["zero_optimization"]["stage"] < 3:
            parts = modelled(seen["partitioning"], world_size, seen["accumulation"])
            # The first step also tells all ranks how long compiling took.
            assert len(seen["steps"][-1]) == sum(part.calls for part in parts), seen


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_parameters_are_counted_once_and_none_is_left_out(size: str) -> None:
    config = sized_config(size, 8192)
    assert sum(map(sum, parameter_sizes(config))) == num_parameters(config)


@pytest.mark.parametrize("name", FEW)
def test_a_single_rank_sends_nothing(name: str) -> None:
    assert modelled(name, world_size=1, accumulation=3) == []


def test_accumulating_costs_stage_1_nothing_and_stages_2_and_3_all_of_it_again() -> None:
    def gradients(partitioning: str, accumulation: int) -> int:
        parts = modelled(partitioning, 8, accumulation)
        return sum(part.payload for part in parts if part.purpose == "gradients")

    assert gradients("zero1", 8) == gradients("zero1", 1)
    assert gradients("zero2", 8) == 8 * gradients("zero2", 1)
    assert gradients("zero3 in fp32", 8) == 8 * gradients("zero3 in fp32", 1)


def test_weights_that_are_gathered_at_every_use_are_refused_as_not_modelled() -> None:
    settings = partitioning_file("zero3, large matrices")
    settings["zero_optimization"]["stage3_max_reuse_distance"] = 1_000_000
    with pytest.raises(ConfigError, match="stage3_max_reuse_distance = 1000000; allowed: from 2,"):
        step_traffic(parameter_sizes(TINY), settings, world_size=2, accumulation=1, is_bf16=True)


@pytest.mark.parametrize(
    ("operation", "sent"),
    [("all_reduce", 1500.0), ("reduce", 750.0), ("all_gather", 750.0), ("reduce_scatter", 750.0)],
)
def test_a_ring_of_four_sends_three_quarters_once_or_twice(operation: Any, sent: float) -> None:
    part = Collective(operation=operation, elements=500, element_bytes=2, calls=1, purpose="")
    assert part.bytes_sent(4) == sent
