"""Muon: against torch's own on whole matrices, cut among ranks, through the engine."""

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from meloformer.errors import ConfigError
from meloformer.training.muon import MOMENTUM, Muon, orthogonalized, orthogonalized_cut
from meloformer.training.optimizer import (
    OptimizerConfig,
    build_optimizer,
    check_same_optimizer,
    check_stage,
    count_by_muon,
    parameter_groups,
)
from meloformer.training.partitions import WEIGHT, Fragment
from meloformer.training.ranks import start_ranks
from tests.training.checkpoint_worker import (
    MUON_PARTITIONINGS,
    NUM_STEPS,
    RECIPE_RATE,
    build_engine,
    through,
    train,
    whole,
)
from tests.training.gradient_worker import plain_gradient, tiny_model
from tests.training.launching import run, torchrun

ROOT = Path(__file__).resolve().parents[2]

CONFIG = OptimizerConfig(optimizer="muon", weight_decay=0.1)
SHAPES = [(8, 32), (32, 8), (16, 16), (1, 7), (24, 8)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_another_and_vectors_stay(shape: tuple[int, int]) -> None:
    given = random(*shape, seed=1)
    found = orthogonalized(given) / (0.2 * max(shape) ** 0.5)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    assert (found * (left @ right)).sum() > 0.6 * min(shape)


def test_the_scale_of_a_gradient_does_not_matter_and_none_moves_nothing() -> None:
    given = random(16, 32, seed=2)
    assert torch.allclose(orthogonalized(given), orthogonalized(1e-3 * given), atol=0.05)
    assert not orthogonalized(torch.zeros(16, 32)).any()


def test_steps_are_those_of_torch_for_matrices_and_of_adamw_for_the_rest() -> None:
    model = tiny_model()
    twin = copy.deepcopy(model)
    ours = build_optimizer(model, CONFIG)
    matrices, others = parameter_groups(twin, CONFIG.weight_decay)
    theirs = [
        torch.optim.Muon(
            matrices["params"],
            lr=0.0,
            weight_decay=CONFIG.weight_decay,
            momentum=CONFIG.muon_momentum,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others["params"], lr=0.0, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    names = {id(parameter): name for name, parameter in twin.named_parameters()}
    assert {names[id(p)] for p in others["params"]} >= {"token_embedding.weight"}
    assert not any("embedding" in names[id(p)] for p in matrices["params"])
    for step in range(4):
        for number, (a, b) in enumerate(zip(model.parameters(), twin.parameters(), strict=True)):
            a.grad = random(*a.shape, seed=100 * step + number)
            b.grad = a.grad.clone()
        for optimizer in (ours, *theirs):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            optimizer.step()
    first = dict(tiny_model().named_parameters())
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        # torch multiplies in bfloat16 on every device.
        assert (a - b).norm() < 0.02 * (a - first[name]).norm(), name


def cut(matrices: Sequence[Tensor], num_ranks: int) -> tuple[Tensor, list[list[Fragment]]]:
    """Matrices in a row, padded, cut into equal lengths; what each rank holds."""
    row = torch.cat([matrix.flatten() for matrix in matrices])
    length = -(-len(row) // num_ranks) + 3  # with padding at the end
    row = torch.cat([row, row.new_zeros(length * num_ranks - len(row))])
    ends = list(itertools.accumulate((matrix.numel() for matrix in matrices), initial=0))
    held: list[list[Fragment]] = []
    for rank in range(num_ranks):
        first, last = rank * length, (rank + 1) * length
        held.append(
            [
                Fragment(
                    f"m{number}",
                    tuple(matrix.shape),
                    max(first, begin) - begin,
                    min(last, end) - max(first, begin),
                    max(first, begin) - first,
                )
                for number, (matrix, begin, end) in enumerate(
                    zip(matrices, ends[:-1], ends[1:], strict=True)
                )
                if max(first, begin) < min(last, end)
            ]
        )
    return row.view(num_ranks, length), held


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 8])
def test_cut_matrices_move_as_whole_ones_on_any_number_of_ranks(num_ranks: int) -> None:
    matrices = [random(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
    cuts, held = cut(matrices, num_ranks)
    assert num_ranks == 1 or any(part.start for parts in held for part in parts), "none is cut"
    found = torch.cat(
        [
            orthogonalized_cut(cuts[rank], held[rank], rank, lambda update: cuts)
            for rank in range(num_ranks)
        ]
    )
    whole = torch.cat([orthogonalized(matrix).flatten() for matrix in matrices])
    assert torch.equal(found[: len(whole)], whole)
    assert not found[len(whole) :].any()


def test_stage_3_is_refused_with_what_is_allowed() -> None:
    check_stage(CONFIG, 2)
    check_stage(OptimizerConfig(), 3)
    with pytest.raises(ConfigError, match="--optimizer muon under ZeRO stage 3: allowed"):
        check_stage(CONFIG, 3)


def test_a_run_goes_on_with_its_own_optimizer_only() -> None:
    check_same_optimizer({"optimizer": "muon"}, {"optimizer": "muon"})
    check_same_optimizer({"optimizer": "adamw"}, {"beta1": 0.9})  # before there was a choice
    with pytest.raises(ConfigError, match="--optimizer muon: the run in --output was started with"):
        check_same_optimizer({"optimizer": "muon"}, {"beta1": 0.9})


def test_what_muon_moves_is_counted_without_what_is_frozen() -> None:
    model = tiny_model()
    matrices, _ = parameter_groups(model, 0.0)
    everything = sum(parameter.numel() for parameter in matrices["params"])
    assert count_by_muon(model, CONFIG) == everything > 0
    assert count_by_muon(model, OptimizerConfig()) == 0
    frozen = sum(
        p.requires_grad_(False).numel() for p in model.layers[0].parameters() if p.ndim > 1
    )
    assert count_by_muon(model, CONFIG) == everything - frozen < everything


def test_matrices_keep_one_moment_and_the_rest_two() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    optimizer = build_optimizer(model, CONFIG)
    assert isinstance(optimizer, Muon)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = {
        name: {kind for kind, value in optimizer.state[parameter].items() if value.ndim}
        for name, parameter in model.named_parameters()
    }
    assert moments["1.weight"] == {MOMENTUM}
    assert moments["0.weight"] == moments["1.bias"] == {"exp_avg", "exp_avg_sq"}


def test_the_engine_moves_weights_as_the_optimizer_alone_does(tmp_path: Path) -> None:
    losses = through(tmp_path, None, "one", [("zero2", False)], "muon")["zero2 fp32"]
    model = tiny_model()
    optimizer = build_optimizer(model, CONFIG)
    for _ in range(NUM_STEPS):
        gradients = plain_gradient(model)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RECIPE_RATE
        optimizer.step()
        optimizer.zero_grad()
    saved = whole(tmp_path / "one" / "zero2 fp32")
    first = dict(tiny_model().named_parameters())
    for name, parameter in model.named_parameters():
        found = saved[f"weight/{name}"].view(parameter.shape)
        assert (found - parameter).norm() < 1e-3 * (first[name] - parameter).norm(), name
    assert losses["after"][-1] < losses["before"][0]


def test_the_engine_foretells_one_moment_for_matrices_and_takes_muon_for_what_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    engine = build_engine(start_ranks("cpu"), "zero2", is_bf16=False, optimizer="muon")
    to_come = engine.state_to_come()
    matrices, others = (
        sum(parameter.numel() for parameter in group["params"])
        for group in parameter_groups(tiny_model(), 0.0)
    )
    # DeepSpeed pads its groups.
    assert 0 <= to_come - 4 * (matrices + 2 * others) < 1000
    train(engine, 1)
    kept = (part.tensors() for part in engine._partitions.all() if part.optimizer)
    moments = [value for tensors in kept for kind, value in tensors.items() if kind != WEIGHT]
    assert sum(value.numel() * value.element_size() for value in moments) == to_come
    assert engine.state_to_come() == 0
    said = capfd.readouterr()
    assert "untested" not in said.out + said.err


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_goes_on_with_its_momenta_on_other_ranks(tmp_path: Path) -> None:
    names = ["one", "two", "three"]
    measured = {"one": through(tmp_path, None, "one", MUON_PARTITIONINGS, "muon")}
    for num_ranks, (source, target) in enumerate(itertools.pairwise(names), start=2):
        script = str(ROOT / "tests/training/checkpoint_worker.py")
        command = [*torchrun(num_ranks), script, str(tmp_path), source, target, "muon"]
        done = run(command, limit_seconds=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        measured[target] = json.loads((tmp_path / f"{target}.json").read_text())
    for source, target in itertools.pairwise(names):
        for key, found in measured[target].items():
            assert found["difference"] == 0.0, key
            expected = measured[source][key]["after"]
            # In bfloat16 other ranks round the gradients otherwise.
            near = 1e-4 if key.endswith("fp32") else 2e-2
            assert found["before"] == pytest.approx(expected, abs=near), key
