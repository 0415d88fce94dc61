"""Parts of a checkpoint: written by some ranks under one stage, read by others under another."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from meloformer.errors import CheckpointError
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training.checkpoint import MANIFEST_NAME, PARTS_NAME, sum_files
from meloformer.training.parts import Part, PartsReader, part_name
from meloformer.training.ranks import start_ranks
from meloformer.training.run_folder import find_checkpoint
from meloformer.training.saving import Checkpoints, read_state
from tests.layouts import tiny_config
from tests.training import checkpoint_worker
from tests.training.checkpoint_worker import EMA, NUM_STEPS, build_engine, save, train
from tests.training.launching import ROOT, run, torchrun
from tests.training.test_checkpoint import STATE

SHAPE = (7, 5)
VALUES = torch.arange(35.0)


def write_runs(folder: Path, cuts: list[int], kind: str = "weight") -> None:
    """One parameter, cut among as many ranks as there are runs between the cuts."""
    for rank, (start, end) in enumerate(pairwise(cuts)):
        facts = {"start": start, "shape": list(SHAPE), "scalars": {"step": 3.0}}
        Part({f"{kind}/linear": VALUES[start:end]}, {"linear": facts}).write(
            folder / part_name(rank)
        )


@pytest.mark.parametrize("cuts", [[0, 35], [0, 1, 34, 35], [0, 12, 24, 35], list(range(36))])
def test_a_run_is_read_whole_however_it_was_cut(cuts: list[int], tmp_path: Path) -> None:
    write_runs(tmp_path, cuts)
    reader = PartsReader(tmp_path)
    for start in range(35):
        for end in (start + 1, min(start + 13, 35), 35):
            target = torch.full((end - start,), torch.nan)
            reader.read("weight", "linear", start, target)
            assert torch.equal(target, VALUES[start:end]), (start, end)


def test_a_part_that_is_missing_is_refused_and_never_read_as_zeros(tmp_path: Path) -> None:
    write_runs(tmp_path, [0, 12, 24, 35])
    (tmp_path / part_name(1)).unlink()
    reader = PartsReader(tmp_path)
    reader.read("weight", "linear", 0, torch.empty(12))
    with pytest.raises(CheckpointError, match=r"found elements 10 to 12 .* expected up to 13"):
        reader.read("weight", "linear", 10, torch.empty(3))


def test_parts_of_another_model_are_refused_with_both_shapes(tmp_path: Path) -> None:
    write_runs(tmp_path, [0, 35])
    reader = PartsReader(tmp_path)
    reader.check({"linear": SHAPE})
    with pytest.raises(CheckpointError, match=r"linear of shape \(7, 5\), expected \(5, 7\)"):
        reader.check({"linear": (5, 7)})
    with pytest.raises(CheckpointError, match="found bias of shape none"):
        reader.check({"linear": SHAPE, "bias": (5,)})


def test_no_parts_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no parts"):
        PartsReader(tmp_path)


@pytest.mark.parametrize(
    "source", [("zero1", True), pytest.param(("zero3", False), marks=pytest.mark.slow)]
)
def test_another_stage_and_precision_goes_on_with_the_same_weights_moments_average_and_steps(
    source: tuple[str, bool], tmp_path: Path
) -> None:
    ranks = start_ranks("cpu")
    written = build_engine(ranks, source[0], is_bf16=source[1], ema=EMA)
    train(written, 1)
    save(written, tmp_path / "one")
    expected = train(written, 1)
    for name, is_bf16 in (("zero2", True), ("zero3", False)):
        engine = build_engine(ranks, name, is_bf16=is_bf16, ema=EMA)
        engine.load(tmp_path / "one")
        save(engine, tmp_path / name)
        assert checkpoint_worker.difference(tmp_path / "one", tmp_path / name) == 0
        # The loss in bf16 is that of rounded weights.
        near = 1e-6 if is_bf16 == source[1] else 1e-2
        assert train(engine, 1) == pytest.approx(expected, abs=near), name


def test_before_the_first_step_there_are_weights_and_no_moments(tmp_path: Path) -> None:
    ranks = start_ranks("cpu")
    engine = build_engine(ranks, "zero2", is_bf16=False)
    save(engine, tmp_path)
    expected = train(engine, 2)
    engine.load(tmp_path)
    assert train(engine, 2) == expected, "moments of later steps have gone"


def test_frozen_parameters_are_carried_along(tmp_path: Path) -> None:
    ranks = start_ranks("cpu")
    frozen = ("token_embedding", "layers.1.query")
    engine = build_engine(ranks, "zero2", is_bf16=True, frozen=frozen)
    train(engine, 1)
    before = engine.full_weights()
    save(engine, tmp_path)
    for parameter in engine.module.parameters():
        parameter.data.zero_()
    engine.load(tmp_path)
    after = engine.full_weights()
    assert sum(not p.requires_grad for p in engine.module.parameters()) == 2
    assert all(torch.equal(after[name], before[name]) for name in before)


class Bomb:
    """A pickle that writes a file as soon as it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self._path,)


def test_a_pickle_under_the_name_of_any_file_is_refused_and_never_run(tmp_path: Path) -> None:
    ranks = start_ranks("cpu")
    engine = build_engine(ranks, "zero2", is_bf16=False)
    fired = tmp_path / "fired"
    bomb = pickle.dumps(Bomb(fired))
    pickle.loads(bomb)
    assert fired.exists(), "the bomb works"
    fired.unlink()

    state = replace(STATE, world_size=1, tokenizer_fingerprint=fingerprint())
    saver = Checkpoints(
        engine,
        tmp_path,
        tiny_config(),
        keep_last=0,
        keep_every=0,
        is_background=False,
        tell=lambda outcome: None,
    )
    saver.save(state)
    (folder,) = (tmp_path / "checkpoints").iterdir()

    def resume() -> None:
        found, _ = find_checkpoint(tmp_path, str(folder))
        assert found
        read_state(ranks, found, STATE.run_id)
        engine.load(found / PARTS_NAME)

    resume()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 5
    for path in files:
        content, manifest = path.read_bytes(), (folder / MANIFEST_NAME).read_bytes()
        path.write_bytes(bomb)
        if path.name != MANIFEST_NAME:
            sums = sum_files(folder)
            del sums[MANIFEST_NAME]
            fixed = json.loads(manifest) | {"files": sums}
            (folder / MANIFEST_NAME).write_text(json.dumps(fixed))
        with pytest.raises(CheckpointError, match=str(path)):
            resume()
        assert not fired.exists(), path
        path.write_bytes(content)
        (folder / MANIFEST_NAME).write_bytes(manifest)
    resume()


@pytest.mark.slow
@pytest.mark.distributed
def test_one_two_four_ranks_and_one_again_go_on_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    worker = str(ROOT / "tests/training/checkpoint_worker.py")
    chain = [(1, "-", "a"), (2, "a", "b"), (4, "b", "c"), (1, "c", "d")]
    measured = {}
    for num_ranks, source, target in chain:
        done = run([*torchrun(num_ranks), worker, str(tmp_path), source, target])
        assert done.returncode == 0, done.stderr[-3000:]
        measured[target] = json.loads((tmp_path / f"{target}.json").read_text())
    assert len(measured["a"]) == 8
    for _, source, target in chain[1:]:
        for key, found in measured[target].items():
            assert found["difference"] == 0, f"{source} to {target}, {key}"
            undisturbed = measured[source][key]["after"]
            assert found["before"] == pytest.approx(undisturbed, abs=1e-4), (target, key)
            assert len(undisturbed) == NUM_STEPS
