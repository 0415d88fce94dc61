"""Compiling ahead of a cold start, in processes: one process compiles one graph after another.

In bucket mode a run declares many shapes, each of which is some graphs, and each graph takes
seconds: compiled in turn before the first step, they would take minutes. So where nothing of it is
in the cache folder yet, a rank first starts a few processes that each run some of the shapes with a
short model of the run's own widths. What they compile lies in the folder afterwards, and the run's
own warm-up takes it from there.

Torch's keys for a compiled graph hold dtypes, shapes, strides, which tensors want gradients and the
index of the device, but neither values nor the number of layers. So each rank compiles for its own
device; ranks of a host still share the machine code of the kernels, which has no index.

Nothing depends on these processes: what one of them leaves out, because it fails, hangs or finds no
room on the device, the run compiles by itself.

    python -m meloformer.training.compile_ahead <task>.json      (what such a process runs)
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import meloformer.model
from meloformer.batches.batch import Batch
from meloformer.batches.phases import BatchShape
from meloformer.interrupts import asked_to_stop, end_with_parent
from meloformer.model.attention import Backend, build_plan
from meloformer.model.config import Checkpointing, MuseFormerConfig
from meloformer.model.injection import INJECTION_LAYER, NoisedOwn
from meloformer.model.kernel_options import has_default_tiles
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.rules import parse_rule, rule_to_json
from meloformer.training.compile_cache import use_compile_cache, version_key
from meloformer.training.cores import cores_at_hand
from meloformer.training.graphs import Shapes, in_turn, limit_graphs, warm_up
from meloformer.training.out_of_memory import is_out_of_memory
from meloformer.training.ranks import Ranks, ranks_on_host

# As many graphs as a process that has to load torch first gains nothing on.
FEW_GRAPHS = 12
MAX_WORKERS = 8
# What was compiled until then is in the cache: the limit is for processes that hang.
LIMIT_SECONDS = 300
# The first layer reads summaries that are all alike, the last one writes none; all others are alike
# to the compiler. Of those with open summaries, the first reads some that nothing has trained.
NUM_LAYERS = 3
NUM_OPEN_LAYERS = 2

_MARKS = "meloformer-compiled"
_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class CompileSpec:
    """What decides which code a run compiles, beside the shapes of its batches.

    Args:
        model: the run's.
        device: with its index.
        backend: of attention.
        is_bf16: dtype of the weights; fp32 if not.
        precision: dtype of the attention call; None keeps that of the weights.
        checkpointing: what the backward pass computes again.
        fuse: whether pointwise parts are compiled.
        block_size: tokens along each side of a block.
    """

    model: MuseFormerConfig
    device: torch.device
    backend: Backend
    is_bf16: bool
    precision: torch.dtype | None
    checkpointing: Checkpointing
    fuse: bool
    block_size: int

    def num_graphs(self, shapes: Shapes) -> int:
        """Graphs of some shapes."""
        return shapes.num_graphs(
            rule_of(self.model.rule),
            summaries=self.model.summaries,
            opened=self.model.num_open_layers > 0,
            fuse=self.fuse,
        )

    def shortened(self) -> "CompileSpec":
        """The fewest layers that compile all there is."""
        num_open = min(self.model.num_open_layers, NUM_OPEN_LAYERS)
        layers = INJECTION_LAYER + num_open if num_open else min(self.model.num_layers, NUM_LAYERS)
        return replace(self, model=replace(self.model, num_layers=layers))

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `from_json` reads it."""
        model = {**asdict(self.model), "rule": rule_to_json(self.model.rule)}
        precision = None if self.precision is None else str(self.precision).removeprefix("torch.")
        return vars(self) | {"model": model, "device": str(self.device), "precision": precision}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CompileSpec":
        """The spec that `to_json` wrote."""
        model, precision = dict(values["model"]), values["precision"]
        model["rule"] = parse_rule(model["rule"], "rule")
        return cls(
            **values
            | {
                "model": MuseFormerConfig(**model),
                "device": torch.device(values["device"]),
                "precision": getattr(torch, precision) if precision else None,
            }
        )


class CompileAhead:
    """The processes that compile for one rank, and what is known to be compiled.

    Args:
        spec: of the run.
        num_workers: processes at a time; 0 starts none; by the cores of the host if None.
        local_rank: of this process; each rank of a host begins with other shapes.
        say: takes a line on what was done.

    Attributes:
        has_compiled: whether any process was started.
    """

    def __init__(
        self,
        spec: CompileSpec,
        num_workers: int | None,
        local_rank: int,
        *,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._turn = local_rank, ranks_on_host()
        self._spec = spec.shortened()
        if num_workers is None:
            num_workers = default_workers(ranks_on_host())
        # Tiles that torch times while it compiles want the device for themselves.
        self._num_workers = num_workers if has_default_tiles(spec.block_size) else 0
        self._seen: set[tuple[str, BatchShape]] = set()
        self.has_compiled = False

    def compile(self, shapes: Shapes) -> None:
        """Compile what is cold of some shapes, if that is worth it; all processes are gone after.

        Each shape is looked at once.
        """
        if not self._num_workers or not _keeps_code():
            return
        asked = [item for item in dict.fromkeys(_items(shapes)) if item not in self._seen]
        self._seen.update(asked)
        cold = in_turn([item for item in asked if not self._mark(*item).exists()], *self._turn)
        if self._spec.num_graphs(_shapes(cold)) <= FEW_GRAPHS:
            return
        num_workers = min(self._num_workers, len(cold))
        self.has_compiled = True
        if self._spec.device.type == "cuda":
            # What is cached for this process is room for the others.
            torch.cuda.empty_cache()
        began = time.monotonic()
        try:
            failed = _run_workers(self._spec, [cold[n::num_workers] for n in range(num_workers)])
        except OSError as error:
            self._say(f"no processes could be started to compile ahead: {error}")
            return
        self._say(
            f"{num_workers} processes compiled ahead for {len(cold)} cold shapes, in "
            f"{time.monotonic() - began:.0f} s"
        )
        if failed:
            self._say(
                f"{len(failed)} of them did not end well, and what they left out is compiled here: "
                f"{failed[0]}"
            )

    def note_compiled(self, shapes: Shapes) -> None:
        """Note that some shapes are in the cache: a later start begins no processes for them."""
        if not self._num_workers:
            return
        # A folder that cannot be written holds no code either.
        with contextlib.suppress(OSError):
            for item in _items(shapes):
                mark = self._mark(*item)
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()

    def _mark(self, mode: str, shape: BatchShape) -> Path:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        name = f"{mode}-" + "x".join(map(str, shape))
        return Path(cache_dir()) / _MARKS / _code_key(self._spec) / name


def _keeps_code() -> bool:
    # Imported here: only runs that compile have to wait for it.
    import torch._inductor.config

    return not torch._inductor.config.force_disable_caches


def default_workers(ranks_on_host: int) -> int:
    """Processes of a rank: each compiles on one core, and data workers want some too.

    A single one would only compile what the rank, which waits for it, could do itself.
    """
    workers = min(cores_at_hand() // ranks_on_host // 2, MAX_WORKERS)
    return workers if workers > 1 else 0


@cache
def _code_key(spec: CompileSpec) -> str:
    """Changes with all that the compiled code depends on, but for the shapes."""
    digest = hashlib.sha256()
    # How long a row may be stands in the shapes; how many rows have open summaries or
    # are filled, in no code.
    opened = float(spec.model.num_open_layers > 0)
    model = replace(spec.model, max_seq_len=0, open_summary_rate=opened, fill_rate=0.0)
    settings = replace(spec, model=model).to_json()
    device = spec.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    digest.update(json.dumps([settings, version_key(device), name], sort_keys=True).encode())
    for path in sorted(Path(meloformer.model.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _items(shapes: Shapes) -> list[tuple[str, BatchShape]]:
    return [("train", one) for one in shapes.train] + [("score", one) for one in shapes.score]


def _shapes(items: list[tuple[str, BatchShape]]) -> Shapes:
    train, score = (
        tuple(shape for found, shape in items if found == mode) for mode in ("train", "score")
    )
    return Shapes(train=train, score=score)


def _run_workers(spec: CompileSpec, parts: list[list[tuple[str, BatchShape]]]) -> list[str]:
    """Run a process for each part to its end or the time limit; why some did not end well."""
    deadline = time.monotonic() + LIMIT_SECONDS
    with tempfile.TemporaryDirectory(prefix="meloformer-compile-") as folder:
        logs = [Path(folder, f"{number}.log") for number in range(len(parts))]
        with _started(spec, parts, logs) as workers:
            while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
                if asked_to_stop():
                    return []  # nobody waits for the rest, and what is compiled stays
                time.sleep(_POLL_SECONDS)
            reasons = [
                f"stopped after {LIMIT_SECONDS} s"
                if worker.poll() is None
                else f"status {worker.returncode}: {_last(log)}"
                for worker, log in zip(workers, logs, strict=True)
                if worker.poll() != 0
            ]
    return reasons


@contextlib.contextmanager
def _started(
    spec: CompileSpec, parts: list[list[tuple[str, BatchShape]]], logs: list[Path]
) -> Iterator[list[subprocess.Popen]]:
    """The processes; none of them is left, however it ends."""
    # One core each. Otherwise every process would start another for every core of the host.
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    workers = []
    try:
        for part, log in zip(parts, logs, strict=True):
            task = log.with_suffix(".json")
            told = {
                "spec": spec.to_json(),
                "items": part,
                "limit_seconds": LIMIT_SECONDS,
                "parent": os.getpid(),
            }
            task.write_text(json.dumps(told))
            with log.open("wb") as output:
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "meloformer.training.compile_ahead", str(task)],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield workers
    finally:
        for worker in workers:
            # What it has started, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def _last(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")


class _Alone:
    """The model as `warm_up` wants it, without an engine: weights of one process, never updated."""

    def __init__(self, spec: CompileSpec) -> None:
        self.ranks = Ranks(rank=0, local_rank=0, world_size=1, device=spec.device)
        self._spec, self._rule = spec, rule_of(spec.model.rule)
        model = MuseFormer(spec.model, checkpointing=spec.checkpointing, fuse=spec.fuse)
        self._model = model.to(spec.device, torch.bfloat16 if spec.is_bf16 else torch.float32)

    def predict(self, batch: Batch) -> Tensor:
        plan = build_plan(
            batch.layout, self._rule, self._spec.backend, batch.blocks, self._spec.precision
        )
        return self._model(batch.ids_BT, batch.layout, plan, NoisedOwn.of(batch.open_seeds))

    def backward(self, loss: Tensor) -> Tensor:
        loss.backward()
        return loss.detach()

    def drop_gradients(self) -> None:
        self._model.zero_grad(set_to_none=True)


def compile_here(spec: CompileSpec, shapes: Shapes) -> int:
    """Compile some shapes in this process, into the cache folder that the environment names.

    Args:
        spec: of the run, shortened or not.
        shapes: what to compile.

    Returns:
        Number of shapes for which the device had no room.
    """
    if spec.device.type == "cuda":
        torch.cuda.set_device(spec.device)
    use_compile_cache(None, spec.device)
    limit_graphs(spec.num_graphs(shapes))
    blocks_rule = rule_of(spec.model.rule) if spec.backend == "flex" else None
    alone, num_left_out = _Alone(spec), 0
    for item in _items(shapes):
        try:
            warm_up(
                alone,
                alone.predict,
                _shapes([item]),
                blocks_rule,
                block_size=spec.block_size,
                opened=spec.model.num_open_layers > 0,
                fuse=spec.fuse,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):  # libraries and kernels have words of their own for it
                raise
            num_left_out += 1
        alone.drop_gradients()
        if spec.device.type == "cuda":
            torch.cuda.empty_cache()  # others compile beside this process
    return num_left_out


def _end_with(parent: int) -> None:
    """A rank that is killed, or ends because another one refused, leaves nothing on the device."""
    end_with_parent()
    if os.getppid() != parent:
        sys.exit("the process that wanted this has ended")


def main(path: Path) -> None:
    """Do one task; ends with the process that gave it, and by itself at the time limit."""
    task = json.loads(path.read_text())
    signal.alarm(math.ceil(task["limit_seconds"]))
    _end_with(task["parent"])
    items = [(mode, BatchShape(*shape)) for mode, shape in task["items"]]
    if num_left_out := compile_here(CompileSpec.from_json(task["spec"]), _shapes(items)):
        sys.exit(f"the device had no room for {num_left_out} of {len(items)} shapes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
