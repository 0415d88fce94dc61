import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.batches.collate import collate_rows
from meloformer.batches.phases import BatchShape
from meloformer.command_line import parse_flags
from meloformer.model.attention import build_plan
from meloformer.model.config import SIZES, MuseFormerConfig
from meloformer.model.masks import RULES
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import load_weights
from meloformer.training import preflight
from meloformer.training.config import TrainConfig
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config
from meloformer.training.engine import Engine
from meloformer.training.graphs import GraphBudget, Shapes
from meloformer.training.metrics import METRICS_NAME
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.out_of_memory import Memory
from meloformer.training.preflight import Trial, is_cheap, try_largest
from meloformer.training.ranks import start_ranks
from tests.layouts import tiny_config

ROOT = Path(__file__).resolve().parents[2]
SHAPE = BatchShape(2, 256, 128)


def weights_after_two_steps(
    stage: str, *, is_bf16: bool, is_tried: bool
) -> dict[str, torch.Tensor]:
    ranks = start_ranks("cpu")
    run = RunFacts(
        micro_batch_rows=1, accumulation=1, world_size=1, gradient_clipping=1.0, device="cpu"
    )
    settings = load_ds_config(ROOT / f"ds_configs/{stage}.json") | {"bf16": {"enabled": is_bf16}}
    ds_config = resolve_ds_config(settings, run, source=stage)
    torch.manual_seed(0)
    config = tiny_config(num_layers=2, width=32, ffn_width=64)
    engine = Engine(MuseFormer(config), ranks, ds_config, OptimizerConfig())
    num_weights = sum(parameter.numel() for parameter in MuseFormer(config).parameters())

    def predict(batch: Batch) -> torch.Tensor:
        return engine(batch.ids_BT, batch.layout, build_plan(batch.layout, RULES["halves"]))

    def step() -> None:
        engine.set_learning_rate(1e-2)
        for _ in range(2):
            engine.backward(predict(collate_rows([[]], 128)).float().square().mean())
        engine.grad_norm()
        engine.update()

    def look() -> None:
        if not is_tried:
            return
        before, to_come = torch.get_rng_state(), engine.state_to_come()
        budget = GraphBudget(Shapes(train=(SHAPE,), score=()), None)
        trial = try_largest(engine, predict, SHAPE, None, accumulates=True, watch=budget.watch)
        (memory,) = trial.memory
        assert 0 < to_come < memory.peak < memory.total or not to_come
        assert torch.equal(torch.get_rng_state(), before)
        assert engine.state_to_come() == to_come

    look()
    # Two moments in fp32; DeepSpeed pads its partitions.
    assert 0 <= engine.state_to_come() - 2 * 4 * num_weights < 4096
    step()
    assert engine.state_to_come() == 0
    look()
    step()
    return engine.full_weights()


@pytest.mark.parametrize(
    ("stage", "is_bf16"),
    [
        ("zero2", False),
        *(
            pytest.param(stage, is_bf16, marks=pytest.mark.slow)
            for stage, is_bf16 in (("zero1", False), ("zero1", True), ("zero2", True))
        ),
        pytest.param("zero3", False, marks=pytest.mark.slow),
    ],
)
def test_trying_the_largest_batch_leaves_no_trace_in_weights_moments_or_random_numbers(
    stage: str, is_bf16: bool
) -> None:
    tried, plain = (
        weights_after_two_steps(stage, is_bf16=is_bf16, is_tried=tried) for tried in (True, False)
    )
    assert all(torch.equal(tried[name], plain[name]) for name in plain)


def test_a_run_trains_to_the_same_bits_with_the_trial_and_without(
    recipe: ModuleType, chorale_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        f"--data {chorale_shards} --model_size tiny --max_seq_len 256 --batch_size 2 "
        "--gradient_accumulation_steps 2 --num_workers 0 --validation_rows 2 --device cpu "
        "--samples 0 "
        "--max_steps 2 --memory_headroom 0.001"
    ).split()

    def run(name: str) -> tuple[str, list, dict[str, torch.Tensor]]:
        output = tmp_path / name
        recipe.main(parse_flags(TrainConfig, [*flags, "--output", str(output)]))
        losses = [
            json.loads(line)["loss"] for line in (output / METRICS_NAME).read_text().splitlines()
        ]
        (start,) = json.loads((output / "run.json").read_text())["starts"]
        assert start["first_step_s"] > 0
        assert start["cold_s"] is start["warm_s"] is None, "nothing is compiled on a CPU"
        return (output / "train.log").read_text(), losses, load_weights(output / "model")

    log, losses, weights = run("tried")
    line = r"the largest batch, 2 rows of 256 tokens and 128 summaries, fits: peak .* GiB of .*"
    assert re.search(line, log)
    assert re.search(r"warning: on rank 0 the peak is above --memory_headroom 0\.001", log)

    monkeypatch.setattr(preflight, "FLOPS_ON_A_CPU", 0)
    log, same_losses, same_weights = run("not_tried")
    assert "is not tried before the first step" in log and "fits: peak" not in log
    assert same_losses == losses
    assert all(torch.equal(same_weights[name], weights[name]) for name in weights)


def test_the_peak_is_that_of_the_fullest_rank_and_warns_above_the_headroom_alone() -> None:
    gib = 1 << 30
    trial = Trial(SHAPE, (Memory(40 * gib, 80 * gib), Memory(66 * gib, 80 * gib)))
    line, warning = trial.lines(0.8)
    assert "66.00 GiB of 80.00 GiB (82%)" in line
    assert "rank 1" in warning and "--memory_headroom 0.8" in warning and "--batch_size" in warning
    assert len(trial.lines(0.9)) == 1


def test_a_cpu_tries_what_takes_seconds_and_an_accelerator_everything() -> None:
    def config(size: str) -> MuseFormerConfig:
        facts = vars(SIZES[size])
        return MuseFormerConfig(
            **facts, vocab_size=643, num_onsets=1, num_instruments=129, max_seq_len=8192
        )

    long, short = BatchShape(6, 8192, 512), BatchShape(6, 1024, 128)
    assert is_cheap(config("tiny"), short, torch.device("cpu"))
    assert not is_cheap(config("small"), long, torch.device("cpu"))
    assert is_cheap(config("large"), long, torch.device("cuda", 0))
