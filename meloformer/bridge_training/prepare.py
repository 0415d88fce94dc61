"""Everything that is settled, and refused, before a bridge's first step."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meloformer.bridge.adapter import SummaryAdapter
from meloformer.bridge.bridge_folder import BridgeFacts, model_type_of, read_bridge_config
from meloformer.bridge.bridges import Bridge
from meloformer.bridge.targets import SplitTargets, SummaryTargets
from meloformer.bridge_training.config import BridgeTrainConfig, check_same_settings
from meloformer.bridge_training.objectives import Objective
from meloformer.bridge_training.pairs import Pairs, check_matched, join
from meloformer.bridge_training.texts import open_states
from meloformer.bridge_training.token_loss import WindowTokens
from meloformer.errors import CheckpointError, ConfigError
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.weights import MODEL_NAMES, find_model_folder, model_fingerprint
from meloformer.training.checkpoint import TrainingState, check_owner
from meloformer.training.commit import commit_of
from meloformer.training.ds_config import RunFacts, load_ds_config, resolve_ds_config
from meloformer.training.optimizer import check_stage
from meloformer.training.ranks import Ranks, start_ranks
from meloformer.training.run_folder import (
    RUN_NAME,
    Run,
    check_restart,
    find_checkpoint,
    new_run_id,
    start_facts,
    wanted_resume,
)
from meloformer.training.schedule import resolve_warmup_steps


def of_targets(targets: SummaryTargets) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the summaries that a bridge is to foretell."""
    return targets.mean, targets.std


@dataclass(frozen=True, kw_only=True)
class BridgeKind:
    """What tells the training of one kind of bridge from another's.

    Args:
        build: a new bridge for a width of text states and a width of summaries.
        objective: wraps it, as attribute `bridge`.
        objective_settings: plain data that a resumed run has to share.
        most_bars: of a window, as many as the bridge has queries for or has been trained on.
        tokens_from: shards to read the windows from, for an objective that asks for their tokens.
        layer: of the base, after which the answers enter.
        statistics: mean and deviation, (D,) float32, that undo normalising the answers.
        most_valid: validation windows that are looked at, evenly spread; all if not given.
        extra: further plain data for config.json.
    """

    build: Callable[[int, int], Bridge | SummaryAdapter]
    objective: Callable[[Any, Ranks], Objective]
    objective_settings: dict[str, Any]
    most_bars: int
    tokens_from: str | None = None
    layer: int = INJECTION_LAYER
    statistics: Callable[[SummaryTargets], tuple[Tensor, Tensor]] = of_targets
    most_valid: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PreparedBridge:
    """A run of which everything is known.

    Args:
        flags: as typed, with --output.
        ranks: the started processes.
        train: pairs to train on.
        valid: pairs to validate on; may be empty.
        bridge: with its first weights.
        objective: around it.
        facts: what stands beside the weights.
        ds_config: for DeepSpeed.
        run: for run.json.
        num_steps: optimizer steps of the whole run.
        checkpoint: to go on from.
        state: of that checkpoint.
        is_done: nothing is left to do.
    """

    flags: BridgeTrainConfig
    output: Path
    ranks: Ranks
    train: Pairs
    valid: Pairs
    bridge: Bridge | SummaryAdapter
    objective: Objective
    facts: BridgeFacts
    ds_config: dict[str, Any]
    run: Run
    num_steps: int
    checkpoint: Path | None
    state: TrainingState | None
    is_done: bool

    @property
    def rows_per_rank(self) -> int:
        """Rows that each rank takes of the global batch."""
        return self.run.global_batch // self.ranks.world_size


def prepare(
    flags: BridgeTrainConfig, kind: BridgeKind, command: list[str] | None = None
) -> PreparedBridge:
    """Settle every setting and refuse what cannot be, on all ranks together.

    Args:
        flags: as typed.
        kind: of bridge.
        command: for run.json; that of this process if not given.

    Raises:
        MeloFormerError: anything that a user can get wrong.
    """
    settings = load_ds_config(flags.config)
    # Before any process waits for another, or a text is encoded.
    targets = SummaryTargets.open(flags.targets)
    check_targets(targets, flags)
    windows = {split: targets.split(split) for split in ("train", "valid")}
    check_windows(windows.values(), kind.most_bars, flags.targets)
    ranks = start_ranks(flags.device)
    check_restart(flags.output)

    mean_D, std_D = kind.statistics(targets)
    tokens = {}
    if kind.tokens_from is not None:
        shards_sum = targets.manifest["shards_manifest_sha256"]
        for split in windows:
            tokens[split] = WindowTokens(kind.tokens_from, shards_sum, split)
    states, notes = open_states(flags, ranks)
    train, valid = (
        join(
            split,
            states,
            of_split,
            seed=flags.seed,
            languages=flags.languages,
            tokens=tokens.get(split),
        )
        for split, of_split in windows.items()
    )
    valid = valid.some(kind.most_valid)
    texts = f"--captions {flags.captions}" if flags.captions else f"--states {flags.states}"
    check_matched(train, texts, str(flags.targets), flags.languages)

    torch.manual_seed(flags.seed)
    bridge = kind.build(states.width, targets.width)
    model_type = model_type_of(bridge)
    output = flags.output or Path("runs") / ranks.on_first(
        lambda: f"{model_type}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    )
    checkpoint, passed_over = ranks.on_first(
        lambda: find_checkpoint(output, wanted_resume(flags.resume))
    )
    known = ranks.on_first(lambda: Run.load(output) if (output / RUN_NAME).exists() else None)
    global_batch = known.global_batch if known else flags.batch_size * ranks.world_size
    if global_batch % ranks.world_size:
        raise ConfigError(
            f"{ranks.world_size} ranks for the {global_batch} rows of a step that the run in "
            f"--output was started with; allowed: a number of ranks that divides {global_batch}"
        )
    ds_config = resolve_ds_config(
        settings,
        RunFacts(
            micro_batch_rows=global_batch // ranks.world_size,
            accumulation=1,
            world_size=ranks.world_size,
            gradient_clipping=flags.optimizer.gradient_clipping,
            device=ranks.device.type,
        ),
        source=str(flags.config),
    )
    check_stage(flags.optimizer, ds_config["zero_optimization"]["stage"])

    run_settings = flags.to_json() | {
        "model_type": model_type,
        "model": asdict(bridge.config),
        "objective": kind.objective_settings,
    }
    facts = BridgeFacts.of(
        bridge,
        base=targets.base,
        encoder=states.encoder,
        mean_D=mean_D,
        std_D=std_D,
        layer=kind.layer,
    ).with_extra(**kind.extra, trained_bars=train.longest_bars)
    data_sum = hashlib.sha256(
        f"{targets.fingerprint} {states.encoder['fingerprint']} {states.captions_sha256}".encode()
    ).hexdigest()
    if known is not None:
        check_same_settings(run_settings, known.settings)
        check_same_data(known, data_sum)
    num_steps = flags.max_steps or -(-flags.epochs * len(train) // global_batch)
    resolve_warmup_steps(num_steps, flags.schedule)
    if known is None:
        known = Run(
            run_id=ranks.on_first(new_run_id),
            settings=run_settings,
            global_batch=global_batch,
            num_steps=num_steps,
            manifest_sha256=data_sum,
            starts=[],
        )
    state = ranks.on_first(partial(_read_state, checkpoint, known.run_id, targets))
    start_step = state.step if state else 0
    if start_step > num_steps:
        raise ConfigError(
            f"{checkpoint}: found {start_step} steps done of {num_steps}; allowed: more --epochs "
            "or --max_steps to go on"
        )
    start = start_facts(
        command or sys.argv,
        ranks.world_size,
        ranks.device,
        start_step,
        ranks.on_first(commit_of),
    )
    return PreparedBridge(
        flags=flags,
        output=output,
        ranks=ranks,
        train=train,
        valid=valid,
        bridge=bridge,
        objective=kind.objective(bridge, ranks),
        facts=facts,
        ds_config=ds_config,
        run=replace(
            known,
            settings=run_settings,
            num_steps=num_steps,
            starts=[*known.starts, start],
            notes=notes + passed_over,
        ),
        num_steps=num_steps,
        checkpoint=checkpoint,
        state=state,
        is_done=ranks.on_first(lambda: _is_exported(output, facts.model_type, num_steps))
        and start_step == num_steps,
    )


def check_targets(targets: SummaryTargets, flags: BridgeTrainConfig) -> None:
    """Refuse targets that no bridge should learn from.

    Raises:
        ConfigError: they contradict themselves, or their base never learned to follow summaries.
        CheckpointError: they are of another base than --checkpoint.
    """
    if targets.base["width"] != targets.width:
        raise ConfigError(
            f"--targets {flags.targets}: found summaries {targets.width} wide of a model "
            f"{targets.base['width']} wide; extract them again with launch/extract_summaries.py"
        )
    if not targets.base.get("open_summary_rate") and not flags.allow_closed_base:
        raise ConfigError(
            f"--targets {flags.targets}: found summaries of a model trained with "
            "--open_summary_rate 0, which never learned to follow any; allowed: a rate above 0; "
            "train such a model, or give --allow_closed_base to see what comes of it"
        )
    if flags.checkpoint is not None:
        targets.check_base(model_fingerprint(find_model_folder(flags.checkpoint)))


def check_windows(splits: Iterable[SplitTargets], most_bars: int, folder: Path) -> None:
    """Refuse windows of more bars than a bridge takes.

    Args:
        splits: that a run reads.
        most_bars: of a window.
        folder: of the targets.

    Raises:
        ConfigError: one is longer.
    """
    longest = max((window.bars for split in splits for window in split.windows), default=0)
    if longest > most_bars:
        raise ConfigError(
            f"--targets {folder}: found windows of up to {longest} bars, allowed {most_bars}, as "
            "many as the bridge takes; extract the summaries and write the captions again with "
            f"--max_bars {most_bars}"
        )


def check_same_data(known: Run, data_sum: str) -> None:
    """Refuse to go on with other targets, texts or another encoder.

    Raises:
        ConfigError: the sums differ.
    """
    if known.manifest_sha256 != data_sum:
        raise ConfigError(
            f"--targets, --captions, --text_encoder: found the sum {data_sum[:12]}, the run in "
            f"--output was started with {known.manifest_sha256[:12]}; allowed: the same summaries, "
            "texts and encoder, or another --output"
        )


def _read_state(
    checkpoint: Path | None, run_id: str, targets: SummaryTargets
) -> TrainingState | None:
    if checkpoint is None:
        return None
    state = TrainingState.load(checkpoint)
    check_owner(state, checkpoint, run_id, targets.base["fingerprint"])
    return state


def _is_exported(output: Path, model_type: str, step: int) -> bool:
    try:
        config = read_bridge_config(output / MODEL_NAMES["raw"], {model_type: None})
        return bool(config.get("step") == step)
    except CheckpointError:
        return False
