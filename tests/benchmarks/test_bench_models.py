"""A bench builds what training builds: fused alike, twin included, with its graphs declared."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from meloformer.batches.phases import BatchShape
from meloformer.benchmarks.bench_models import (
    build_model,
    engine_settings,
    num_graphs,
    open_rate,
    sized_config,
)
from meloformer.benchmarks.bench_rows import find_pieces
from meloformer.benchmarks.memory_trial import Trial, model_of, run_trial
from meloformer.benchmarks.stepper import Stepper, Trainee
from meloformer.benchmarks.train_bench import measure_steps, settle
from meloformer.benchmarks.workload import Workload
from meloformer.errors import ConfigError
from meloformer.model import fused
from meloformer.model.config import SIZES
from meloformer.model.fused import GRAPHS_PER_ROWS
from meloformer.model.injection import INJECTION_LAYER
from meloformer.training.config import TrainConfig
from meloformer.training.graphs import Shapes
from meloformer.training.ranks import start_ranks

LENGTH = 128
CONFIG = sized_config("tiny", LENGTH)
TWIN = replace(CONFIG, rule="full", summaries=False)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made and counted, and run as they are: no compiler takes its time."""
    monkeypatch.setattr(fused, "BACKEND", "eager")
    fused._compiled.cache_clear()
    torch._dynamo.reset()
    yield
    fused._compiled.cache_clear()
    torch._dynamo.reset()


def settings(shards: Path, **changes: Any):
    index, _ = find_pieces(str(shards))
    given = {"max_seq_len": LENGTH, "batch_size": 1, "accumulation": 1, "num_workers": 0}
    return settle(index, start_ranks("cpu"), **(given | changes))


@pytest.mark.parametrize("size", SIZES)
def test_a_bench_a_trial_of_memory_and_a_forecast_take_the_model_of_a_run(size: Any) -> None:
    trained = model_of(size, TrainConfig.attention, 8192)
    assert trained.num_open_layers == trained.num_layers - INJECTION_LAYER > 0
    assert sized_config(size, 8192) == trained == Workload(model_size=size).model
    assert open_rate(trained) == TrainConfig.open_summary_rate > 0
    assert open_rate(TWIN) == 0


def test_graphs_are_those_that_training_declares_and_the_twin_has_the_fused_ones_alone() -> None:
    shapes = Shapes(train=(BatchShape(2, LENGTH, 128), BatchShape(2, 256, 128)), score=())
    for fuse in (False, True):
        declared = shapes.num_graphs(
            ((), ()),  # type: ignore[arg-type]  # two head groups, as `halves` has
            summaries=True,
            opened=True,
            fuse=fuse,
        )
        assert num_graphs(CONFIG, shapes, "flex", fuse=fuse) == declared
        assert num_graphs(TWIN, shapes, "flex", fuse=fuse) == fuse * GRAPHS_PER_ROWS
        assert num_graphs(CONFIG, shapes, "dense", fuse=fuse) == fuse * GRAPHS_PER_ROWS


def test_weights_are_the_same_fused_or_not() -> None:
    plain, compiled = (build_model(CONFIG, fuse=fuse) for fuse in (False, True))
    assert [layer.fuse for layer in compiled.layers] == [True] * CONFIG.num_layers
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow  # loads the compiler
def test_a_fused_bench_of_the_step_compiles_what_it_declares_the_twin_too(
    chorale_shards: Path, traced: None
) -> None:
    shared = settings(chorale_shards, fuse="on")
    trainees = [Trainee(name="halves", config=CONFIG), Trainee(name="twin", config=TWIN)]
    rows = measure_steps(shared, trainees, num_slices=1, steps_per_slice=1, steady_steps=1)
    assert [row["graphs_declared"] for row in rows] == [GRAPHS_PER_ROWS] * 2
    # The twin has the same widths: it finds the graphs of the first one.
    assert 0 < rows[0]["graphs"] <= GRAPHS_PER_ROWS and rows[1]["graphs"] == 0


def test_training_fuses_on_cuda_alone_and_so_do_the_benches(chorale_shards: Path) -> None:
    assert not settings(chorale_shards).fuse
    assert settings(chorale_shards, fuse="on").fuse


def test_a_warm_up_that_fails_leaves_no_data_workers_behind(
    chorale_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def fails(self: Stepper, allocated_before: int) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(Stepper, "_warm_up", fails)
    monkeypatch.setattr(Stepper, "close", lambda self: closed.append(self.trainee.name))
    trainee = Trainee(name="halves", config=CONFIG)
    (row,) = measure_steps(
        settings(chorale_shards), [trainee], num_slices=1, steps_per_slice=1, steady_steps=1
    )
    assert row["why"] == "RuntimeError: no kernel" and closed == ["halves"]


def test_settings_of_an_engine_say_how_a_batch_is_cut() -> None:
    found = engine_settings("cpu", batch_size=3, accumulation=2, world_size=4)
    assert found["train_batch_size"] == 24 and found["bf16"] == {"enabled": False}


def test_a_trial_that_does_not_end_is_ended_and_refused() -> None:
    trial = Trial(
        model_size="tiny",
        attention="halves",
        attention_precision="bf16",
        checkpointing="none",
        rows=1,
        tokens=512,
        device="cpu",
    )
    with pytest.raises(ConfigError, match="did not end within 0 s"):
        run_trial(trial, limit_seconds=0.2)
