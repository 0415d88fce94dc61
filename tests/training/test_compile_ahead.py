"""Compiling ahead: who compiles what, when nobody does, and that the run then finds it all."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meloformer.batches.phases import BatchShape
from meloformer.model.config import SIZES
from meloformer.model.fused import GRAPHS_PER_ROWS
from meloformer.model.masks import HeadGroup
from meloformer.training import compile_ahead
from meloformer.training.compile_ahead import (
    CompileAhead,
    CompileSpec,
    compile_here,
    default_workers,
)
from meloformer.training.compile_cache import INDUCTOR, TRITON
from meloformer.training.graphs import Shapes, in_turn
from tests.layouts import tiny_config
from tests.training.launching import ENVIRONMENT, ROOT, TIME_LIMIT_SECONDS

SPEC = CompileSpec(
    model=tiny_config(num_layers=4),
    device=torch.device("cpu"),
    backend="flex",
    is_bf16=True,
    precision=torch.float32,
    checkpointing="ffn",
    fuse=True,
    block_size=128,
)
SHAPES = Shapes(
    train=tuple(BatchShape(1, 128 * n, 128) for n in range(1, 5)),
    score=tuple(BatchShape(2, 128 * n, 128) for n in range(1, 4)),
)
Items = list[tuple[str, BatchShape]]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[Items]]:
    """What processes were told to compile, instead of processes; the cache folder is a new one."""
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "cache"))
    told: list[list[Items]] = []

    def run(spec: CompileSpec, parts: list[Items]) -> list[str]:
        told.append(parts)
        return []

    monkeypatch.setattr(compile_ahead, "_run_workers", run)
    return told


def items(parts: list[Items]) -> Items:
    return [item for part in parts for item in part]


def test_every_cold_shape_is_compiled_by_one_process_and_looked_at_once(
    started: list[list[Items]],
) -> None:
    said: list[str] = []
    ahead = CompileAhead(SPEC, 3, 0, say=said.append)
    ahead.compile(SHAPES)
    ahead.compile(SHAPES)
    (parts,) = started
    assert sorted(map(len, parts)) == [2, 2, 3]
    assert sorted(items(parts)) == sorted(
        [("train", shape) for shape in SHAPES.train] + [("score", shape) for shape in SHAPES.score]
    )
    assert ahead.has_compiled and len(said) == 1 and "3 processes" in said[0]


def test_ranks_of_a_host_begin_with_other_shapes(
    started: list[list[Items]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in range(2):
        CompileAhead(SPEC, 1, rank, say=lambda line: None).compile(SHAPES)
    (first,), (second,) = started
    assert first != second and sorted(first) == sorted(second)
    for num_ranks in (1, 3, 8):
        orders = [in_turn(range(16), rank, num_ranks) for rank in range(num_ranks)]
        assert len({order[0] for order in orders}) == num_ranks
        assert all(sorted(order) == list(range(16)) for order in orders)


def test_what_is_little_or_known_to_be_compiled_is_left_to_the_run(
    started: list[list[Items]],
) -> None:
    def compile_shapes(spec: CompileSpec, shapes: Shapes = SHAPES, num_workers: int = 2) -> bool:
        started.clear()
        CompileAhead(spec, num_workers, 0, say=lambda line: None).compile(shapes)
        return bool(started)

    assert not compile_shapes(SPEC, Shapes(train=SHAPES.train[:2], score=()))
    assert not compile_shapes(SPEC, num_workers=0)
    assert compile_shapes(SPEC)
    # Nobody is told that it is compiled before the run itself has.
    assert compile_shapes(SPEC)
    CompileAhead(SPEC, 2, 0, say=lambda line: None).note_compiled(SHAPES)
    assert not compile_shapes(SPEC)

    deeper = replace(SPEC, model=replace(SPEC.model, num_layers=40, max_seq_len=65536))
    assert not compile_shapes(deeper), "layers are alike, and lengths stand in the shapes"
    opened = [
        replace(SPEC, model=replace(SPEC.model, open_summary_rate=rate)) for rate in (0.3, 0.7)
    ]
    assert compile_shapes(opened[0]), "open summaries are calls of their own"
    CompileAhead(opened[0], 2, 0, say=lambda line: None).note_compiled(SHAPES)
    assert not compile_shapes(opened[1]), "however many rows have them"
    wider = replace(SPEC.model, width=2 * SPEC.model.width)
    changes = {
        "is_bf16": False,
        "precision": None,
        "fuse": False,
        "model": wider,
    }
    for name, value in changes.items():
        assert compile_shapes(replace(SPEC, **{name: value})), name
    other_rows = tuple(shape._replace(rows=3) for shape in SHAPES.train)
    assert compile_shapes(SPEC, Shapes(train=(*SHAPES.train, *other_rows), score=()))
    assert {shape.rows for _, shape in items(started[0])} == {3}

    with torch._inductor.config.patch(force_disable_caches=True):
        assert not compile_shapes(replace(SPEC, is_bf16=False)), "nothing would be found again"


def test_tiles_that_are_timed_while_they_compile_have_the_device_for_themselves(
    started: list[list[Items]],
) -> None:
    for block_size in (64, 128):
        CompileAhead(replace(SPEC, block_size=block_size), 2, 0, say=lambda line: None).compile(
            SHAPES
        )
        assert len(started) == (block_size == 128)


def test_a_run_that_starts_no_processes_writes_nothing_into_the_cache(tmp_path: Path) -> None:
    ahead = CompileAhead(SPEC, 0, 0, say=lambda line: pytest.fail(line))
    ahead.compile(SHAPES)
    ahead.note_compiled(SHAPES)
    assert not ahead.has_compiled and not list(tmp_path.iterdir())


def test_processes_share_half_the_cores_of_a_host_and_one_alone_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, ranks, expected in ((96, 8, 6), (96, 1, 8), (16, 1, 8), (16, 8, 0), (2, 1, 0)):
        monkeypatch.setattr(compile_ahead, "cores_at_hand", lambda n=cores: n)
        assert default_workers(ranks) == expected


@pytest.mark.parametrize("size", sorted(SIZES))
def test_a_short_model_has_a_first_a_middle_and_a_last_layer_of_the_runs_own_widths(
    size: str,
) -> None:
    rule = (HeadGroup(True, (0, 3), "instrument"), HeadGroup(False, None))
    spec = replace(SPEC, model=tiny_config(**vars(SIZES[size]), rule=rule))
    short = spec.shortened()
    assert short.model.num_layers == 3
    assert replace(short.model, num_layers=spec.model.num_layers) == spec.model
    assert CompileSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    one = replace(spec, model=replace(spec.model, num_layers=1))
    assert one.shortened() == one


def test_a_short_model_has_a_first_and_a_last_layer_with_open_summaries() -> None:
    def shortened(num_layers: int) -> int:
        model = tiny_config(num_layers=num_layers, open_summary_rate=0.3)
        return replace(SPEC, model=model).shortened().model.num_layers

    assert [shortened(layers) for layers in (2, 3, 4, 5, 24)] == [2, 3, 4, 5, 5]


@pytest.mark.parametrize(
    ("does", "limit_seconds", "reason"),
    [
        ("exit 1", TIME_LIMIT_SECONDS, "status 1: it said nothing"),
        # With a process of its own, that has to go too.
        ("sleep 3600; true", 0.2, "stopped after 0.2 s"),
    ],
    ids=["fails", "hangs"],
)
def test_a_process_that_fails_or_hangs_costs_a_line_and_is_gone(
    does: str, limit_seconds: float, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{does}\n")
    python.chmod(0o755)
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(compile_ahead, "LIMIT_SECONDS", limit_seconds)
    processes = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **named) -> None:
            super().__init__(*args, **named)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    said: list[str] = []
    CompileAhead(SPEC, 2, 0, say=said.append).compile(SHAPES)
    assert len(said) == 2 and said[1].startswith("2 of them did not end well") and reason in said[1]
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
    assert len(processes) == 2


def test_a_process_ends_with_the_one_that_wants_its_work(tmp_path: Path) -> None:
    # The first one starts the second, which would sleep for an hour, and is killed.
    (tmp_path / "child.py").write_text(
        "import sys, time\n"
        "from meloformer.training.compile_ahead import _end_with\n"
        "_end_with(int(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "time.sleep(3600)\n"
    )
    (tmp_path / "parent.py").write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, *sys.argv[1:], str(os.getpid())],\n"
        "                         start_new_session=True)\n"
        "time.sleep(3600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "child.py")],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout and parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait(TIME_LIMIT_SECONDS)
    # The child holds the other end of the pipe: it is over when nobody can write any more.
    assert parent.stdout.read() == ""
    with pytest.raises(SystemExit, match="has ended"):
        compile_ahead._end_with(parent.pid)


def test_shapes_that_a_device_has_no_room_for_cost_no_other_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (INDUCTOR, TRITON):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(compile_ahead, "limit_graphs", lambda number: None)
    # What allocators, libraries and kernels say of a full device, and a fault of ours.
    errors: dict[int, RuntimeError] = {
        128: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        256: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        384: RuntimeError("Triton Error [CUDA]: out of memory"),
    }
    compiled = []

    def warm_up(alone, predict, shapes: Shapes, blocks_rule, **how) -> None:
        if error := errors.get(shapes.train[0].tokens):
            raise error
        compiled.append(shapes.train[0].tokens)

    monkeypatch.setattr(compile_ahead, "warm_up", warm_up)
    assert compile_here(SPEC.shortened(), Shapes(train=SHAPES.train, score=())) == 3
    assert compiled == [512]
    errors[512] = RuntimeError("no such kernel")
    with pytest.raises(RuntimeError, match="no such kernel"):
        compile_here(SPEC.shortened(), Shapes(train=SHAPES.train, score=()))


def test_a_host_that_starts_no_processes_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INDUCTOR, str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    said: list[str] = []
    CompileAhead(SPEC, 2, 0, say=said.append).compile(SHAPES)
    assert len(said) == 1 and "could be started" in said[0] and "absent" in said[0]


def cold_start(folder: Path, device: str, *arguments: str) -> dict:
    hidden = {INDUCTOR} | (
        {"CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"} if device == "cuda" else set()
    )
    done = subprocess.run(
        [sys.executable, "tests/training/compile_ahead_worker.py", str(folder), device, *arguments],
        cwd=ROOT,
        env={name: value for name, value in ENVIRONMENT.items() if name not in hidden},
        capture_output=True,
        text=True,
        timeout=2 * TIME_LIMIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_all_found(found: dict, num_graphs: int, num_entries: int) -> None:
    assert len(found["said"]) == 1 and "2 processes" in found["said"][0], "none of them failed"
    assert found["said_when_warm"] == []
    assert found["found"] == "warm" and found["graphs"] == num_graphs
    assert found["hits"] == num_entries
    missed = ("misses", "bypassed", "autograd_misses", "autograd_bypassed")
    assert not any(found[name] for name in missed)


@pytest.mark.slow
def test_a_run_finds_compiled_attention_that_processes_without_its_engine_compiled(
    tmp_path: Path,
) -> None:
    # Two stages at two lengths, without gradients: on a CPU the kernel has no backward.
    check_all_found(cold_start(tmp_path, "cpu", "flex", "score"), 4, 4)


@pytest.mark.slow
def test_a_run_finds_fused_parts_forward_and_backward(tmp_path: Path) -> None:
    found = cold_start(tmp_path, "cpu", "dense", "train")
    num_graphs = GRAPHS_PER_ROWS
    check_all_found(found, num_graphs, 2 * num_graphs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_a_gpu_finds_everything_forward_and_backward(tmp_path: Path) -> None:
    found = cold_start(tmp_path, "cuda", "flex", "train", "score")
    # At two lengths: in training an UPDATE with open summaries too. Backward passes are entries of
    # their own.
    of_training = GRAPHS_PER_ROWS + 2 * 3
    num_graphs = of_training + 2 * 2
    check_all_found(found, num_graphs, num_graphs + of_training)
