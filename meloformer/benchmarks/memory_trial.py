"""Trying what a batch takes: real steps in a process of its own, which may run out of memory."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import psutil
import torch
from torch import nn

from meloformer.batches.phases import BatchShape
from meloformer.benchmarks.bench_models import build_model, engine_settings, num_graphs
from meloformer.benchmarks.child_runs import kill_all
from meloformer.benchmarks.peak_memory import peak_bytes
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.config import Checkpointing, MuseFormerConfig, Precision
from meloformer.model.injection import NoisedOwn
from meloformer.model.masks import num_summaries, rule_of
from meloformer.model.memory import BatchSize
from meloformer.model.precision import choose_precision
from meloformer.training.config import ModelSize, TrainConfig, fuses, model_config, resolve
from meloformer.training.ds_config import DEFAULT_DS_CONFIG
from meloformer.training.engine import Engine
from meloformer.training.graphs import Shapes, limit_graphs, padding
from meloformer.training.loss import step_loss
from meloformer.training.memory import BUCKET_ELEMENTS, Partitioning, forecast
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.out_of_memory import is_out_of_memory
from meloformer.training.prepare import backend_of
from meloformer.training.ranks import start_ranks

# The second one meets the gradients of the first, which is where the peak lies.
_MICRO_BATCHES = 2
# Long rows on a slow card, and everything compiled for them.
LIMIT_SECONDS = 900.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One optimizer step.

    Args:
        model_size: a preset.
        attention: the rule.
        attention_precision: dtype of the attention call.
        checkpointing: what is computed again.
        rows: of a micro-batch.
        tokens: of a row.
        device: "cuda" or "cpu".
        limit_bytes: of a CPU process, on top of what it takes before there is a model; 0 for none.
        stage: of ZeRO, on the one rank that tries.
    """

    model_size: ModelSize
    attention: str
    attention_precision: Precision
    checkpointing: Checkpointing
    rows: int
    tokens: int
    device: str
    limit_bytes: int = 0
    stage: Literal[1, 2, 3] = 2

    @property
    def shape(self) -> BatchShape:
        """Of a micro-batch."""
        return BatchShape(self.rows, self.tokens, num_summaries(self.tokens))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial showed.

    Args:
        fits: the step was done.
        peak_bytes: of torch on CUDA; of the process on a CPU, less what it took before there was a
            model. 0 where memory ran out.
    """

    fits: bool
    peak_bytes: int


def run_trial(trial: Trial, *, limit_seconds: float = LIMIT_SECONDS) -> Outcome:
    """Try in a process of its own.

    Args:
        trial: what is tried.
        limit_seconds: after which it is ended, and counts as failed.

    Raises:
        ConfigError: the process failed otherwise than by running out of memory.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(trial))]
    # Each arena of malloc reserves 64 MiB, filled or not, which a limit would count.
    arenas = {"MALLOC_ARENA_MAX": "1"} if trial.limit_bytes else {}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **arenas},
        start_new_session=True,
    )
    what = f"--device {trial.device}: a trial of {trial.rows} x {trial.tokens} tokens"
    try:
        said, complaint = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{what} did not end within {limit_seconds:.0f} s; allowed: a device that nobody else "
            "works on, or fewer tokens"
        ) from error
    finally:
        kill_all(process)  # the compiler's own processes too
    lines = said.splitlines()
    if process.returncode == 0 and lines:
        return Outcome(**json.loads(lines[-1]))
    if _ended_for_memory(process.returncode, trial):
        return Outcome(fits=False, peak_bytes=0)
    last = (complaint.strip().splitlines() or ["nothing"])[-1]
    raise ConfigError(
        f"{what} ended with status {process.returncode} and said: {last}; allowed: a machine that "
        "trains"
    )


def _ended_for_memory(status: int, trial: Trial) -> bool:
    """Whether the end of a process means that it ran out of memory; any other is a fault."""
    # Where the system has no memory left it kills; libraries that get none under a limit abort.
    signals = {signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS}
    return -status in (signals if trial.limit_bytes else {signal.SIGKILL})


def longest_that_fits(fits: Callable[[int], bool], step: int, guess: int, most: int) -> int:
    """Largest multiple of `step` up to `most` for which a falling claim holds; 0 for none.

    >>> longest_that_fits(lambda tokens: tokens <= 3000, 512, guess=1024, most=65536)
    2560
    """
    low, high = 0, most // step + 1
    probe = min(max(guess // step, 1), high - 1)
    while high - low > 1:
        if fits(probe * step):
            low = probe
            # Away from the guess in growing strides, until the two ends are known.
            probe = (low + high) // 2 if high <= most // step else min(2 * low, high - 1)
        else:
            high = probe
            probe = (low + high) // 2
    return low * step


def model_of(model_size: ModelSize, attention: str, max_seq_len: int) -> MuseFormerConfig:
    """Settings of a preset's model, as training takes them."""
    flags = TrainConfig(
        model_size=model_size, attention=attention, max_seq_len=max_seq_len, data=("",)
    )
    return model_config(resolve(flags, "cpu", time_utc="")[0])


def predicted_bytes(trial: Trial) -> int:
    """The peak of a trial by formula, for the device that it is tried on."""
    is_bf16 = trial.device == "cuda"
    size = BatchSize(
        **trial.shape._asdict(),
        attention_bytes=4 if trial.attention_precision == "fp32" else None,
        checkpointing=trial.checkpointing,
    )
    model = model_of(trial.model_size, trial.attention, trial.tokens)
    partitioning = Partitioning(stage=trial.stage, is_bf16=is_bf16)
    return forecast(model, size, partitioning, trial.device).peak


def _bucket(device: torch.device) -> int:
    # A limit on a CPU counts what is reserved, filled or not.
    return BUCKET_ELEMENTS if device.type == "cuda" else 1_000_000


def train_once(trial: Trial) -> Outcome:
    """Do the step in this process, which ends up with a lowered limit of memory."""
    ranks = start_ranks(trial.device)  # type: ignore[arg-type]
    device = ranks.device
    source = DEFAULT_DS_CONFIG.with_name(f"zero{trial.stage}.json")
    ds_config = engine_settings(
        device.type, batch_size=trial.rows, accumulation=_MICRO_BATCHES, source=source
    )
    model = model_of(trial.model_size, trial.attention, trial.tokens)
    precision = choose_precision(
        trial.attention_precision, device, head_width=model.head_width
    ).dtype
    rule, backend = rule_of(model.rule), backend_of(device)
    fuse = fuses("auto", backend, trial.stage)
    shapes = Shapes(train=(trial.shape,), score=())
    if allowed := num_graphs(model, shapes, backend, fuse=fuse):
        limit_graphs(allowed)
    ds_config["zero_optimization"].setdefault("reduce_bucket_size", _bucket(device))
    # Libraries take room of their own: an engine of nothing loads them before the limit.
    Engine(nn.Linear(4, 4), ranks, ds_config, OptimizerConfig())
    before = psutil.Process().memory_info()
    if trial.limit_bytes:
        limit = before.vms + trial.limit_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        engine = Engine(
            build_model(model, fuse=fuse, checkpointing=trial.checkpointing),
            ranks,
            ds_config,
            OptimizerConfig(),
        )
        for _ in range(_MICRO_BATCHES):
            batch = padding(
                trial.shape,
                rule if backend == "flex" else None,
                opened=model.num_open_layers > 0,
            ).to(device)
            plan = build_plan(batch.layout, rule, backend, batch.blocks, precision)
            start = NoisedOwn.of(batch.open_seeds)
            logits_BTV = engine(batch.ids_BT, batch.layout, plan, start)
            loss = step_loss(logits_BTV, batch.targets_BT, 1, 1, fuse=fuse)
            del logits_BTV
            engine.backward(loss)
            del plan, loss
        engine.grad_norm()
        engine.update()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Outcome(fits=False, peak_bytes=0)
    if device.type == "cuda":
        return Outcome(fits=True, peak_bytes=torch.cuda.max_memory_allocated(device))
    return Outcome(fits=True, peak_bytes=peak_bytes() - before.rss)


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(asdict(train_once(Trial(**json.loads(sys.argv[1]))))) + "\n")
