"""The loop of a bridge: what happens in a step, in order."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from meloformer.bridge.bridges import BridgeBatch
from meloformer.bridge_training.engine import AccelerateEngine
from meloformer.bridge_training.heads import train_attribute_heads
from meloformer.bridge_training.journal import Journal
from meloformer.bridge_training.pairs import Pairs, Row
from meloformer.bridge_training.prepare import PreparedBridge
from meloformer.bridge_training.saving import export_bridge, restore, save_checkpoint
from meloformer.errors import TrainingError
from meloformer.interrupts import begin_work
from meloformer.training.checkpoint import TrainingState
from meloformer.training.ema import AVERAGED_SCORES
from meloformer.training.metrics import device_memory, finite, host_memory
from meloformer.training.run_folder import lock_run
from meloformer.training.schedule import learning_rate
from meloformer.training.stopping import Stopping

# Steps in a row whose loss is not finite, after which more data will not help.
_MOST_SKIPPED_STEPS = 10


def train(prepared: PreparedBridge) -> int:
    """Train from where the run stands to its last step, and write the bridge.

    Returns:
        Exit status of this process.

    Raises:
        TrainingError: on all ranks, when loss or gradient stop being finite.
        CheckpointError: on all ranks, when the disk refuses a checkpoint.
    """
    flags, ranks, num_steps = prepared.flags, prepared.ranks, prepared.num_steps
    with ExitStack() as at_end:
        ranks.on_first(lambda: _hold_folder(prepared.output, at_end))
        ranks.on_first(lambda: prepared.run.save(prepared.output))
        engine = AccelerateEngine(
            prepared.objective, ranks, prepared.ds_config, flags.optimizer, ema=flags.ema
        )
        state = prepared.state
        if state is not None and prepared.checkpoint is not None:
            restore(engine, prepared.output, prepared.checkpoint, state)
        state = state or _first_state(prepared)
        journal = Journal(
            prepared.output, start_step=state.step, num_steps=num_steps, is_first=ranks.is_first
        )
        at_end.callback(journal.close)
        for note in prepared.run.notes:
            journal.say(note)
        if flags.heads == "on" and flags.captions is not None:
            with journal.during("training attribute heads"):
                heads = partial(train_attribute_heads, prepared)
                for line in ranks.on_first(heads, is_long=True):
                    journal.say(line)
        begin_work()
        stopping = Stopping(ranks)
        at_end.callback(stopping.close)
        batches = _Batches(prepared, state.step + 1)
        at_end.callback(batches.close)
        skipped_in_a_row, began, start_step = 0, time.monotonic(), state.step
        while (step := state.step + 1) <= num_steps and not stopping.is_agreed:
            step_began = time.monotonic()
            rate = learning_rate(step, num_steps, flags.schedule)
            engine.set_learning_rate(rate)
            batch, num_bars = batches.take(step)
            waited_seconds = time.monotonic() - step_began

            # Of the step and the rank: a resumed run drops out what the run before would have.
            _seed_dropout(flags.seed, step, ranks.rank)
            loss, metrics = engine(batch)

            # All ranks decide together: one rank stopping alone leaves the others waiting.
            means, words = _over_ranks(prepared, loss, metrics, stopping)
            stopping.agree(words)
            is_finite = math.isfinite(means["loss"])
            skipped_in_a_row = 0 if is_finite else skipped_in_a_row + 1
            grad_norm = engine.step(loss) if is_finite else math.inf
            if is_finite and not math.isfinite(grad_norm):
                raise TrainingError(
                    f"step {step}: the gradient is not finite; allowed: a lower --learning_rate; "
                    f"go on from the last checkpoint of {prepared.output} with --resume auto"
                )
            if skipped_in_a_row >= _MOST_SKIPPED_STEPS:
                raise TrainingError(
                    f"step {step}: the loss of {skipped_in_a_row} steps in a row is not finite; "
                    "allowed: targets and text states that are; look at them, or lower "
                    "--learning_rate"
                )
            state = replace(
                state,
                step=step,
                tokens_seen=state.tokens_seen + num_bars,
                skipped_steps=state.skipped_steps + (not is_finite),
            )
            now = time.monotonic()
            seconds = now - step_began
            journal.step(
                {
                    "step": step,
                    "epoch": step * prepared.run.global_batch / len(prepared.train),
                    **{name: finite(value) for name, value in means.items()},
                    "lr": rate,
                    "grad_norm": finite(grad_norm),
                    "bars": num_bars,
                    "padding": float(1 - batch.mask_BS.float().mean()),
                    "step_seconds": seconds,
                    "rows_per_second": prepared.run.global_batch / seconds,
                    "data_wait": waited_seconds / seconds,
                    "memory": device_memory(ranks.device),
                    "memory_host": host_memory(),
                    "skipped": state.skipped_steps,
                    "eta_seconds": (now - began) / (step - start_step) * (num_steps - step),
                }
            )
            is_last = step == num_steps
            if _is_due(step, flags.validate_every, is_last) and not stopping.is_agreed:
                validate(prepared, engine, journal, step)
            if _is_due(step, flags.save_every, is_last) or stopping.is_agreed:
                with journal.during("saving"):
                    save_checkpoint(
                        engine, prepared.output, prepared.facts, state, keep_last=flags.keep_last
                    )
        if stopping.is_agreed:
            journal.say(
                f"stopped by {stopping.name} after step {state.step}; go on with --resume auto"
            )
            return stopping.exit_status
        folder = export_bridge(engine, prepared.output, prepared.facts, num_steps)
        journal.say(f"wrote {folder}")
        return 0


def _hold_folder(output: Path, at_end: ExitStack) -> None:
    at_end.enter_context(lock_run(output))


def validate(
    prepared: PreparedBridge, engine: AccelerateEngine, journal: Journal, step: int
) -> dict[str, float]:
    """Means over the whole validation split, of the weights and of their average; collective.

    Every rank runs the same number of batches, which some partitionings need; what is too much
    counts for nothing.
    """
    if not len(prepared.valid):
        return {}
    rounds = 1 + engine.has_average
    with (
        journal.during("validating"),
        journal.watch_validation(step, rounds * _num_batches(prepared)) as advance,
    ):
        scores = _scores(prepared, engine, advance)
        averaged = {}
        if engine.has_average:
            with engine.averaged_weights():
                averaged = _scores(prepared, engine, advance)
        scores |= {f"{AVERAGED_SCORES}{name}": value for name, value in averaged.items()}
    journal.validation(step, scores)
    return scores


def _num_batches(prepared: PreparedBridge) -> int:
    """Batches of each rank in a validation."""
    rows_of_all = prepared.rows_per_rank * prepared.ranks.world_size
    return -(-len(prepared.valid) // rows_of_all)


def _scores(
    prepared: PreparedBridge, engine: AccelerateEngine, advance: Callable[[], None]
) -> dict[str, float]:
    ranks, pairs, size = prepared.ranks, prepared.valid, prepared.rows_per_rank
    rows = pairs.rows_in_order()
    totals: dict[str, float] = {}
    weights: dict[str, float] = {}
    with engine.evaluating():
        for number in range(_num_batches(prepared)):
            begin = (number * ranks.world_size + ranks.rank) * size
            own = rows[begin : begin + size]
            batch = on_device(pairs.batch(own or rows[:1]), prepared)
            loss, metrics = engine(batch)
            num_bars, num_targets = (pairs.num_bars(own), batch.num_targets) if own else (0, 0)
            for name, value in {"loss": loss, **metrics}.items():
                weight = num_targets if name in prepared.objective.over_tokens else num_bars
                totals[name] = totals.get(name, 0.0) + float(value) * weight
                weights[name] = weights.get(name, 0.0) + weight
            advance()
    sums = ranks.sum([*totals.values(), *weights.values()])
    return {name: sums[i] / sums[len(totals) + i] for i, name in enumerate(totals)}


def on_device(batch: BridgeBatch, prepared: PreparedBridge) -> BridgeBatch:
    """The batch where the model is."""
    device = prepared.ranks.device
    return replace(
        batch,
        states=batch.states.to(device),
        summaries_BSD=batch.summaries_BSD.to(device),
        mask_BS=batch.mask_BS.to(device),
    )


class _Batches:
    """Rows of each step, of one rank; the next ones are read while a step is computed."""

    def __init__(self, prepared: PreparedBridge, first_step: int) -> None:
        self._prepared = prepared
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._next = self._read_ahead(first_step)

    def take(self, step: int) -> tuple[BridgeBatch, int]:
        """Batch of a step, and the bars of the global batch."""
        batch, num_bars = self._next.result()
        self._next = self._read_ahead(step + 1)
        return on_device(batch, self._prepared), num_bars

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _read_ahead(self, step: int) -> Future[tuple[BridgeBatch, int]]:
        prepared = self._prepared
        return self._thread.submit(
            read_step,
            prepared.train,
            step,
            prepared.run.global_batch,
            prepared.ranks.rank,
            prepared.ranks.world_size,
        )


def read_step(
    pairs: Pairs, step: int, global_batch: int, rank: int, world_size: int
) -> tuple[BridgeBatch, int]:
    """A rank's share of a step's rows, and the bars of all of them.

    Args:
        pairs: to draw from.
        step: from 1.
        global_batch: rows of the step; a multiple of the ranks.
        rank: this one.
        world_size: number of ranks.
    """
    rows: list[Row] = pairs.rows_of_step(step, global_batch)
    num_bars = pairs.num_bars(rows)
    size = global_batch // world_size
    own = rows[rank * size : (rank + 1) * size]
    return pairs.batch(own, num_bars / world_size), num_bars


def _over_ranks(
    prepared: PreparedBridge,
    loss: torch.Tensor,
    metrics: dict[str, torch.Tensor],
    stopping: Stopping,
) -> tuple[dict[str, float], list[float]]:
    """Means of loss and metrics over ranks, and the sums of what the ranks say of stopping."""
    ranks = prepared.ranks
    values = {"loss": loss.detach(), **metrics}
    sums = ranks.sum([*(float(value) for value in values.values()), *stopping.own_word()])
    means = {name: sums[i] / ranks.world_size for i, name in enumerate(values)}
    return means, sums[len(values) :]


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(state) >> 1)


def _is_due(step: int, every: int, is_last: bool) -> bool:
    return is_last or (every > 0 and step % every == 0)


def _first_state(prepared: PreparedBridge) -> TrainingState:
    return TrainingState(
        run_id=prepared.run.run_id,
        step=0,
        cursor={},
        tokens_seen=0,
        skipped_steps=0,
        world_size=prepared.ranks.world_size,
        ds_config=prepared.ds_config,
        tokenizer_fingerprint=prepared.facts.base["fingerprint"],
        settings=prepared.run.settings,
    )
