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
from meloformer.benchmarks.peak_memory import peak_bytes
from meloformer.errors import ConfigError
from meloformer.model.attention import build_plan
from meloformer.model.config import Checkpointing, MuseFormerConfig, Precision
from meloformer.model.masks import num_summaries, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.precision import choose_precision
from meloformer.training.config import ModelSize, TrainConfig, model_config, resolve
from meloformer.training.ds_config import (
    DEFAULT_DS_CONFIG,
    RunFacts,
    load_ds_config,
    resolve_ds_config,
)
from meloformer.training.engine import Engine
from meloformer.training.graphs import padding
from meloformer.training.loss import step_loss
from meloformer.training.memory import BUCKET_ELEMENTS
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.out_of_memory import is_out_of_memory
from meloformer.training.prepare import backend_of
from meloformer.training.ranks import start_ranks


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One optimizer step of two micro-batches.

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


def run_trial(trial: Trial) -> Outcome:
    """Try in a process of its own.

    Raises:
        ConfigError: the process failed otherwise than by running out of memory.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(trial))]
    # Each arena of malloc reserves 64 MiB, filled or not, which a limit would count.
    arenas = {"MALLOC_ARENA_MAX": "1"} if trial.limit_bytes else {}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **arenas})
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return Outcome(**json.loads(lines[-1]))
    if _ended_for_memory(done.returncode, trial):
        return Outcome(fits=False, peak_bytes=0)
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    raise ConfigError(
        f"--device {trial.device}: a trial of {trial.rows} x {trial.tokens} tokens ended with "
        f"status {done.returncode} and said: {said}; allowed: a machine that trains"
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


def _bucket(device: torch.device) -> int:
    # A limit on a CPU counts what is reserved, filled or not.
    return BUCKET_ELEMENTS if device.type == "cuda" else 1_000_000


def train_once(trial: Trial) -> Outcome:
    """Do the step in this process, which ends up with a lowered limit of memory."""
    ranks = start_ranks(trial.device)  # type: ignore[arg-type]
    device = ranks.device
    run = RunFacts(
        micro_batch_rows=trial.rows,
        accumulation=2,
        world_size=1,
        gradient_clipping=1.0,
        device=device.type,
    )
    source = DEFAULT_DS_CONFIG.with_name(f"zero{trial.stage}.json")
    ds_config = resolve_ds_config(load_ds_config(source), run, source=str(source))
    model = model_of(trial.model_size, trial.attention, trial.tokens)
    precision = choose_precision(
        trial.attention_precision, device, head_width=model.head_width
    ).dtype
    rule = rule_of(model.rule)
    backend = backend_of(device)
    ds_config["zero_optimization"].setdefault("reduce_bucket_size", _bucket(device))
    # Libraries take room of their own: an engine of nothing loads them before the limit.
    Engine(nn.Linear(4, 4), ranks, ds_config, OptimizerConfig())
    before = psutil.Process().memory_info()
    if trial.limit_bytes:
        limit = before.vms + trial.limit_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        engine = Engine(
            MuseFormer(model, checkpointing=trial.checkpointing),
            ranks,
            ds_config,
            OptimizerConfig(),
        )
        shape = BatchShape(trial.rows, trial.tokens, num_summaries(trial.tokens))
        for _ in range(2):
            batch = padding(shape, rule if backend == "flex" else None).to(device)
            plan = build_plan(batch.layout, rule, backend, batch.blocks, precision)
            loss = step_loss(engine(batch.ids_BT, batch.layout, plan), batch.targets_BT, 1, 1)
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
