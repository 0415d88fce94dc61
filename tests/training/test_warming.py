"""What comes before the first step of a phase: compiling, and the trial of the largest batch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.command_line import parse_flags
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES
from meloformer.training.config import TrainConfig
from meloformer.training.graphs import Shapes
from meloformer.training.session import Session


def session_that_compiles(
    recipe: ModuleType,
    flags: list[str],
    output: Path,
    note: Callable[[Batch], None] = lambda batch: None,
) -> Session:
    """A session that takes itself for one on CUDA; attention is dense, where it is called at all.

    Args:
        recipe: launch/train.py.
        flags: of the run.
        output: its folder.
        note: told of each batch.
    """
    flags = [*flags, "--output", str(output), "--compile_workers", "0"]
    session = recipe.Session(recipe.prepare(parse_flags(TrainConfig, flags)))

    def predict(batch: Batch) -> torch.Tensor:
        note(batch)
        return session.engine(batch.ids_BT, batch.layout, build_plan(batch.layout, session._rule))

    session._backend, session.predict = "flex", predict
    session.warming = session._warming()
    return session


def test_each_phase_compiles_its_own_shapes_before_its_first_step(
    recipe: ModuleType, base_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_that_compiles(recipe, [*base_flags, "--phases", "on"], tmp_path / "run")
    compiled = []
    monkeypatch.setattr(
        "meloformer.training.warming.warm_up",
        lambda engine, predict, shapes, rule, **_: compiled.append((step, shapes)),
    )
    for step in range(1, 110):
        session.warming.warm_up(step)
    session.close()
    assert [step for step, _ in compiled] == [1, 101]
    assert [{shape.rows for shape in shapes.train} for _, shapes in compiled] == [{1}, {2}]


def test_processes_that_compile_are_gone_before_the_trial_and_know_what_comes_after_it(
    recipe: ModuleType, base_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*base_flags, "--phases", "on", "--max_steps", "110"]
    done: list[tuple[str, set[tuple[int, int]]]] = []
    session = session_that_compiles(
        recipe, flags, tmp_path / "run", note=lambda batch: done.append(("trial", set()))
    )

    def note(name: str, shapes: Shapes) -> None:
        done.append((name, {(shape.rows, shape.tokens) for shape in shapes.train}))

    monkeypatch.setattr(session.warming._ahead, "compile", lambda shapes: note("processes", shapes))
    monkeypatch.setattr(
        session.warming._ahead, "note_compiled", lambda shapes: note("known", shapes)
    )
    monkeypatch.setattr(
        "meloformer.training.warming.warm_up",
        lambda engine, predict, shapes, rule, **_: note("warm-up", shapes),
    )
    session.warming.try_largest(1, session.num_steps)
    session.warming.warm_up(1)
    session.warming.warm_up(101)
    session.close()
    lengths = set(session._data.plan.row_lengths)
    first, full = ({(rows, tokens) for tokens in lengths} for rows in (1, 2))
    assert [name for name, _ in done if name != "trial"] == [
        "processes",
        *["processes", "warm-up", "known"] * 2,
    ]
    assert done[0] == ("processes", first | {(2, max(lengths))}) and done[1][0] == "trial"
    assert [shapes for name, shapes in done if name == "known"] == [first, full]


def test_blocks_are_of_the_size_asked_for_wherever_a_run_builds_them(
    recipe: ModuleType, base_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*base_flags, "--output", str(tmp_path / "run"), "--block_size", "64"]
    prepared = recipe.prepare(parse_flags(TrainConfig, flags))
    data = replace(prepared.data, blocks_rule=RULES["halves"])
    stream = data.train_stream(prepared.ranks, 0, None)
    held_out = data.validation_streams(prepared.ranks).values()
    batches = [next(stream)[0], *(next(iter(rows)) for rows in held_out)]
    stream.close()
    assert [batch.blocks.block_size for batch in batches] == [64] * 3

    sizes = []
    session = session_that_compiles(
        recipe,
        [*base_flags, "--block_size", "64"],
        tmp_path / "run",
        note=lambda batch: sizes.append(batch.blocks.block_size if batch.blocks else None),
    )
    session.warming.try_largest(1, session.num_steps)
    session.warming.warm_up(1)
    session.close()
    assert len(sizes) > 2 and set(sizes) == {64}
