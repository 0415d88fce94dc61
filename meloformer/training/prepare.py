"""Settling a run: every setting, checked in the order in which it can fail.

What a user can get wrong is refused here, before a model is built or a folder is made.
"""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from meloformer.batches.phases import too_short
from meloformer.errors import ConfigError
from meloformer.model.attention import Backend
from meloformer.model.config import MuseFormerConfig
from meloformer.model.masks import rule_of
from meloformer.training.checkpoint import TrainingState
from meloformer.training.commit import commit_of
from meloformer.training.config import ResolvedConfig, TrainConfig, model_config, resolve
from meloformer.training.data import TrainData, open_data
from meloformer.training.devices import check_architecture, check_bf16, read_facts
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config
from meloformer.training.optimizer import check_stage
from meloformer.training.ranks import Ranks, start_ranks
from meloformer.training.run_folder import (
    RUN_NAME,
    Run,
    accumulation_for,
    check_restart,
    check_same_run,
    find_checkpoint,
    new_run_id,
    start_facts,
    wanted_resume,
)
from meloformer.training.saving import is_exported, read_state
from meloformer.training.schedule import resolve_warmup_steps


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run whose every setting is settled and checked; nothing is built or written yet.

    Args:
        config: the flags, nothing left open.
        ranks: the started processes.
        data: shards and plan.
        model: settings of the model.
        ds_config: partitioning, nothing left open.
        run: what run.json will say.
        num_steps: optimizer steps of the whole run.
        checkpoint: where to go on from, verified; None at the beginning.
        state: its state.
        is_done: every step is trained and the model is written.
    """

    config: ResolvedConfig
    ranks: Ranks
    data: TrainData
    model: MuseFormerConfig
    ds_config: dict[str, Any]
    run: Run
    num_steps: int
    checkpoint: Path | None
    state: TrainingState | None
    is_done: bool

    @property
    def backend(self) -> Backend:
        """The attention that trains on this device."""
        return backend_of(self.ranks.device)


def backend_of(device: torch.device) -> Backend:
    """Block-sparse on CUDA; elsewhere it has no backward, and dense is the oracle."""
    return "flex" if device.type == "cuda" else "dense"


def prepare(flags: TrainConfig, command: list[str] | None = None) -> Prepared:
    """Settle every setting and refuse what cannot be, on all ranks together.

    Args:
        flags: as typed.
        command: for run.json; that of this process if not given.

    Raises:
        MeloFormerError: anything that a user can get wrong.
    """
    ranks = start_ranks(flags.device)
    device_facts = read_facts(ranks.device)
    if device_facts:
        check_architecture(device_facts)
    check_restart(flags.output)
    time_utc = ranks.on_first(lambda: time.strftime("%Y%m%d-%H%M%S", time.gmtime()))
    config, notes = ranks.on_first(partial(resolve, flags, ranks.device.type, time_utc=time_utc))
    model = model_config(config)
    settings = load_ds_config(config.config)

    resume = wanted_resume(config.resume)
    checkpoint, passed_over = ranks.on_first(lambda: find_checkpoint(config.output, resume))
    known = ranks.on_first(
        lambda: Run.load(config.output) if (config.output / RUN_NAME).exists() else None
    )
    global_batch = config.batch_size * config.gradient_accumulation_steps * ranks.world_size
    if known is not None:
        global_batch = known.global_batch
    accumulation = accumulation_for(global_batch, config.batch_size, ranks.world_size)
    if known is not None and accumulation != config.gradient_accumulation_steps:
        notes.append(
            f"--gradient_accumulation_steps {config.gradient_accumulation_steps} becomes "
            f"{accumulation}: an optimizer step keeps the {global_batch} rows of the first start"
        )
        config = replace(config, gradient_accumulation_steps=accumulation)
    if config.check_gradients is None:
        config = replace(config, check_gradients="on" if ranks.world_size > 1 else "off")
    ds_config = resolve_ds_config(
        settings,
        RunFacts(
            micro_batch_rows=config.batch_size,
            accumulation=accumulation,
            world_size=ranks.world_size,
            gradient_clipping=config.optimizer.gradient_clipping,
            device=ranks.device.type,
        ),
        source=str(config.config),
    )
    check_stage(config.optimizer, ds_config["zero_optimization"]["stage"])
    if device_facts and ds_config["bf16"]["enabled"]:
        check_bf16(device_facts)

    blocks_rule = rule_of(model.rule) if backend_of(ranks.device) == "flex" else None
    data = open_data(config, global_batch, blocks_rule)
    manifest_sha256 = ranks.on_first(lambda: data.manifest_sum)
    if data.manifest_sum != manifest_sha256:
        # A URL may be written to while ranks start, or be out of reach of some.
        raise ConfigError(
            f"--data {config.data_name}: rank {ranks.rank} found manifest "
            f"{data.manifest_sum[:12]}, the first rank {manifest_sha256[:12]}; allowed: the same "
            "on all; start again when all hosts reach the shards and nobody writes to them"
        )
    data = replace(data, left_out=ranks.on_first(data.find_left_out))
    line = data.describe_left_out()
    notes += [line] if line else []
    if known is not None:
        check_same_run(known, config.to_json(), manifest_sha256)
    num_steps, note = ranks.on_first(lambda: settle_steps(data, known))
    notes += [note] if note else []
    note = too_short(data.phases, num_steps)
    notes += [note] if note else []
    resolve_warmup_steps(num_steps, config.schedule)
    if known is None:
        known = Run(
            run_id=ranks.on_first(new_run_id),
            settings=config.to_json(),
            global_batch=global_batch,
            num_steps=num_steps,
            manifest_sha256=manifest_sha256,
            starts=[],
        )
    state = read_state(ranks, checkpoint, known.run_id) if checkpoint else None
    start_step = state.step if state else 0
    if start_step > num_steps:
        raise ConfigError(
            f"{checkpoint}: found {start_step} steps done of {num_steps}; allowed: more --epochs "
            "or --max_steps to go on"
        )
    is_done = start_step == num_steps and ranks.on_first(
        lambda: is_exported(config.output, num_steps)
    )
    if start_step == num_steps and not is_done:
        notes.append(f"all {num_steps} steps are done: only the model is left to write")
    elif 0 < start_step < num_steps:
        notes.append(f"goes on after step {start_step}, from {checkpoint}")
    commit = ranks.on_first(commit_of)
    start = start_facts(command or sys.argv, ranks.world_size, ranks.device, start_step, commit)
    run = replace(
        known,
        settings=config.to_json(),
        num_steps=num_steps,
        starts=[*known.starts, start],
        notes=notes + passed_over,
    )
    return Prepared(
        config=config,
        ranks=ranks,
        data=data,
        model=model,
        ds_config=ds_config,
        run=run,
        num_steps=num_steps,
        checkpoint=checkpoint,
        state=state,
        is_done=is_done,
    )


def settle_steps(data: TrainData, known: Run | None) -> tuple[int, str | None]:
    """Optimizer steps of a run, and a line where they are not exact.

    Args:
        data: shards and plan.
        known: the run that goes on. Planning large epochs again takes long, so what it counted
            holds as long as it was asked for the same epochs.
    """
    asked = ("epochs", "max_steps")
    settings = data.config.to_json()
    if known is not None and all(known.settings[name] == settings[name] for name in asked):
        return known.num_steps, None
    return data.count_steps()
