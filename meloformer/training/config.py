"""The flags of launch/train.py, and what they become once the machine is known."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from meloformer.batches.augmentation import Augmentation
from meloformer.batches.filling import Filling
from meloformer.batches.mixture import check_weights
from meloformer.batches.phases import PhaseEnds
from meloformer.batches.plan import Collate
from meloformer.command_line import check_at_least, ungiven
from meloformer.errors import ConfigError
from meloformer.midi import grid
from meloformer.model.attention import Backend
from meloformer.model.config import SIZES, Checkpointing, MuseFormerConfig, Precision
from meloformer.model.device import DeviceName
from meloformer.model.masks import BLOCK_SIZE, BLOCK_SIZES, Rule
from meloformer.model.rules import load_rule, rule_to_json
from meloformer.shards.disk_cache import CacheConfig
from meloformer.shards.download import without_credentials
from meloformer.shards.reader import SHARD_CACHE
from meloformer.tokens.vocabulary import VOCAB_SIZE
from meloformer.training.bad_steps import BadStepConfig
from meloformer.training.ds_config import DEFAULT_DS_CONFIG
from meloformer.training.ema import check_decay
from meloformer.training.lora import AdapterConfig, check_peft
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.schedule import ScheduleConfig
from meloformer.training.stalls import StallConfig
from meloformer.training.wandb_run import check_installed

ModelSize = Literal["tiny", "small", "base", "large"]
OnOff = Literal["on", "off"]
Fuse = Literal["auto", "on", "off"]

SHARDS_FOLDER = Path("data_shards")
UNGIVEN: dict[str, dict[str, Any]] = {
    "cuda": {"model_size": "small", "max_seq_len": 8192},
    "cpu": {"model_size": "tiny", "max_seq_len": 1024},
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Flags of launch/train.py.

    Args:
        config: ds_configs file: how to partition.
        data: shard folders, or their URLs: http(s)://, s3://, gs:// or hf://; the newest of
            data_shards/ if none is given.
        data_weights: passes over each folder of --data in an epoch: 2 takes each piece twice, 0.5
            half of them, and the other half in the next epoch; one pass each if not given. What one
            folder holds out for validation or test is not trained on from another: exact copies
            are left out and counted; near copies across folders are not looked for.
        output: run folder; runs/<size>-<UTC time> if not given.
        model_size: small on CUDA and tiny elsewhere if not given.
        batch_size: rows per rank and micro-step.
        gradient_accumulation_steps: micro-steps per optimizer step at the first start; later
            starts follow the number of ranks, so that an optimizer step keeps its rows.
        max_seq_len: tokens of the longest row; longer on CUDA than elsewhere if not given.
        num_workers: data processes per rank.
        epochs: passes over the training pieces.
        max_steps: optimizer steps; beats --epochs.
        seed: of weights, plan and attribute dropout.
        collate: whole pieces in rows of few lengths, or full rows of one length.
        attention: which tokens a token reads: museformer, hid, halves, full, or the path of a .json
            file with head groups (model/rules.py says how to write one).
        open_summary_rate: share of rows in which each bar may read a blurred and noised summary of
            itself, as it will read what a text says of it; the loss of these rows is lower by that,
            and most of them say nothing of the music in their prefix. Without any, no bridge from
            text fits the model.
        fill_rate: share of windows, outside those rows, that are rewritten so that some bars or
            instruments stand last and read what is around them, as --fill_midi and
            --accompany_midi of launch/generate.py need it; docs/generation.md says how.
        attention_precision: dtype of the attention call; auto probes the device.
        block_size: tokens along each side of a block of the attention plan, 128 or 64, on CUDA.
            Smaller blocks leave out more pairs, and their tiles are timed when they are compiled,
            one after another: the first start takes longer. Results are the same but for rounding.
        checkpointing: what the backward pass computes again instead of keeping it: nothing, the
            feed-forward networks, or whole layers. Less memory, more time, the same result.
        fuse: compile norms with rotary positions, SwiGLU and the loss, for training; auto does on
            CUDA where a rank holds all weights (ZeRO stages 1 and 2).
        memory_headroom: share of the device's memory above which a peak is warned of.
        compile_cache: folder for compiled attention code, kept for later runs and other ranks;
            meloformer/compiled in the user's cache folder if not given.
        compile_workers: processes that each rank starts to compile attention before a first step
            whose code is not in the cache yet; half the host's CPU cores, shared out over its ranks
            and at most 8 each, if not given; 0 leaves it to the rank itself.
        shard_cache: most shards of a folder that stay mapped in each rank and each data worker.
        phases: start with micro-batches of one row, first without data workers; on in bucket mode
            on CUDA if not given. They keep trouble with data or workers apart from the rest; memory
            they do not save, since the full micro-batch is tried before the first step, and in
            bucket mode there is more to compile. Steps hold the same rows with and without.
        save_every: optimizer steps between checkpoints; 0 saves at the end only.
        validate_every: optimizer steps between validations; 0 validates at the end only.
        validation_rows: rows of a validation over all ranks; the same ones every time.
        samples: pieces to write after each validation, to see and to hear; 4 on CUDA and 1
            elsewhere if not given, 0 for none.
        wandb: project of Weights & Biases to report to as well; none if not given.
        keep_last: checkpoints to keep; 0 keeps all.
        keep_every: steps at whose multiples a checkpoint stays for good; 0 for none. Where
            --save_every does not divide it, fewer are there to stay.
        background_save: write checkpoints while training goes on. A save takes as much host memory
            as it has bytes; the next one waits for it.
        resume: none, auto (newest intact checkpoint of --output) or one of its checkpoints. Auto
            if not given and a launcher has restarted the run, none otherwise.
        init_from: start from the weights of a run, step or model folder; runs/<name>/model_ema for
            averaged ones.
        freeze: what stays as it is: names of modules or parameters, such as embedding, layers.1-6,
            layers.*.ffn_in or *norm*; layers count from 1, and the head is the token embedding.
        ema: decay of a moving average of the weights, such as 0.999, written to model_ema/ and
            validated beside the weights themselves; 0 for none. It rises to this from
            (1 + updates) / (10 + updates), and takes 4 bytes per parameter, shared by the ranks; a
            validation takes twice as long.
        check_gradients: before the first step compare the gradient of a small step with that of a
            single process, and stop where it is another; on for more than one rank if not given.
        dry_run: say what would be done, and stop.
        device: where to compute.
        augmentation: random shifts of training windows.
        cache: files of remote shards.
        schedule: learning rate.
        optimizer: AdamW or Muon, and its settings.
        bad_steps: steps whose loss or gradient goes wrong.
        stalls: runs in which nothing moves.
        phase_ends: when the phases change.
        adapters: fine-tuning by few new weights.
    """

    config: Path = DEFAULT_DS_CONFIG
    data: tuple[str, ...] = ()
    data_weights: tuple[float, ...] = ()
    output: Path | None = None
    model_size: ModelSize | None = None
    batch_size: int = 6
    gradient_accumulation_steps: int = 8
    max_seq_len: int | None = None
    num_workers: int = 8
    epochs: int = 3
    max_steps: int | None = None
    seed: int = 0
    collate: Collate = "bucket"
    attention: str = "halves"
    open_summary_rate: float = 0.3
    fill_rate: float = Filling.rate
    attention_precision: Precision = "auto"
    block_size: int = BLOCK_SIZE
    checkpointing: Checkpointing = "none"
    fuse: Fuse = "auto"
    memory_headroom: float = 0.9
    compile_cache: Path | None = None
    compile_workers: int | None = None
    shard_cache: int = SHARD_CACHE
    phases: OnOff | None = None
    save_every: int = 500
    validate_every: int = 500
    validation_rows: int = 512
    samples: int | None = None
    wandb: str | None = None
    keep_last: int = 3
    keep_every: int = 0
    background_save: OnOff = "on"
    resume: str | None = None
    init_from: Path | None = None
    freeze: tuple[str, ...] = ()
    ema: float = 0.0
    check_gradients: OnOff | None = None
    dry_run: bool = False
    device: DeviceName = "auto"
    augmentation: Augmentation = field(default_factory=Augmentation)
    cache: CacheConfig = field(default_factory=CacheConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    bad_steps: BadStepConfig = field(default_factory=BadStepConfig)
    stalls: StallConfig = field(default_factory=StallConfig)
    phase_ends: PhaseEnds = field(default_factory=PhaseEnds)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)

    def __post_init__(self) -> None:
        lowest = {
            "batch_size": 1,
            "gradient_accumulation_steps": 1,
            "max_seq_len": 16,
            "num_workers": 0,
            "epochs": 1,
            "max_steps": 1,
            "seed": 0,
            "compile_workers": 0,
            "shard_cache": 1,
            "save_every": 0,
            "validate_every": 0,
            "validation_rows": 1,
            "samples": 0,
            "keep_last": 0,
            "keep_every": 0,
        }
        check_at_least(self, lowest)
        if not 0 < self.memory_headroom <= 1:
            raise ConfigError(
                f"--memory_headroom {self.memory_headroom:g}: allowed: above 0, up to 1"
            )
        if self.adapters.lora and self.init_from is None:
            raise ConfigError(
                f"--lora {self.adapters.lora} without --init_from: allowed: adapters of trained "
                "weights; give --init_from runs/<name>"
            )
        if self.adapters.lora and self.freeze:
            raise ConfigError(
                f"--freeze {' '.join(self.freeze)} with --lora {self.adapters.lora}: all but the "
                "adapters is frozen; allowed: one of the two; --lora_targets says where they are"
            )
        check_decay(self.ema)
        if not 0 <= self.open_summary_rate <= 1:
            raise ConfigError(
                f"--open_summary_rate {self.open_summary_rate:g}: allowed: 0 to 1, a share of rows"
            )
        Filling(rate=self.fill_rate)
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(
                f"--block_size {self.block_size}: allowed: {' or '.join(map(str, BLOCK_SIZES))}"
            )
        if self.data_weights:
            check_weights(len(self.data), self.data_weights)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(TrainConfig):
    """Flags with nothing left open: the fields of `TrainConfig`, and what --attention names.

    Args:
        rule: name of a preset, or the head groups that a file holds.
    """

    output: Path
    model_size: ModelSize
    max_seq_len: int
    phases: OnOff
    samples: int
    rule: str | Rule

    @property
    def data_name(self) -> str:
        """What messages and files call the shards: as typed, without the credentials of a URL."""
        return " ".join(map(without_credentials, self.data))

    @property
    def weights(self) -> tuple[float, ...]:
        """Passes over each folder in an epoch."""
        return self.data_weights or (1.0,) * len(self.data)

    def to_json(self) -> dict[str, Any]:
        """Plain data, paths as they were typed, no credentials; the rule itself, not its file.

        The shards are a name where they are one folder, a list of names where they are several.
        """

        def plain(facts: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: str(value) if isinstance(value, Path) else value for key, value in facts}

        settings = asdict(self, dict_factory=plain)
        del settings["rule"]
        names = [without_credentials(name) for name in self.data]
        data = names[0] if len(names) == 1 else names
        return settings | {"data": data, "attention": rule_to_json(self.rule)}


def resolve(
    flags: TrainConfig, device_type: str, *, time_utc: str
) -> tuple[ResolvedConfig, list[str]]:
    """Settle what was not given.

    Args:
        flags: as typed.
        device_type: where the run computes.
        time_utc: names a run folder that was not given.

    Returns:
        The settled flags, and a line for each choice that the user should know of.

    Raises:
        ConfigError: no data, no such rule, or wandb or peft is asked for and not installed.
    """
    lines = []
    chosen = ungiven(flags, UNGIVEN, device_type)
    if chosen and device_type != "cuda":
        words = ", ".join(f"--{name} {value}" for name, value in chosen.items())
        lines.append(f"no CUDA device: {words} (give the flags to choose otherwise)")
    if flags.phases is None:
        on = device_type == "cuda" and flags.collate == "bucket"
        chosen["phases"] = "on" if on else "off"
    if flags.samples is None:
        chosen["samples"] = 4 if device_type == "cuda" else 1
    if flags.wandb is not None:
        check_installed()
    if flags.adapters.lora:
        check_peft()
    flags = replace(flags, **chosen)
    data = flags.data or (str(newest_shards()),)
    output = flags.output or Path("runs") / f"{flags.model_size}-{time_utc}"
    values: dict[str, Any] = {item.name: getattr(flags, item.name) for item in fields(flags)}
    values |= {"data": data, "output": output, "rule": load_rule(flags.attention)}
    return ResolvedConfig(**values), lines


def fuses(fuse: Fuse, backend: Backend, zero_stage: int) -> bool:
    """Whether pointwise parts are compiled: what --fuse comes to.

    Args:
        fuse: as typed.
        backend: that attention trains with; compiling pays where attention is compiled too.
        zero_stage: of the partitioning; stage 3 hands weights to whole modules only.

    >>> fuses("auto", "flex", 2), fuses("auto", "flex", 3), fuses("auto", "dense", 2)
    (True, False, False)
    """
    if fuse == "auto":
        return backend == "flex" and zero_stage < 3
    return fuse == "on"


def newest_shards(folder: Path = SHARDS_FOLDER) -> Path:
    """The shard folder that was made last.

    Raises:
        ConfigError: there is none.
    """
    manifests = list(folder.glob("*/manifest.json"))
    if not manifests:
        raise ConfigError(
            f"--data was not given and {folder}/ holds no shards; allowed: a folder with a "
            "manifest.json; make one with: make shard-data"
        )
    return max(manifests, key=lambda path: path.stat().st_mtime).parent


def model_config(config: ResolvedConfig) -> MuseFormerConfig:
    """The model that the flags ask for."""
    assert config.model_size in get_args(ModelSize)
    return MuseFormerConfig(
        **asdict(SIZES[config.model_size]),
        vocab_size=VOCAB_SIZE,
        num_onsets=grid.MAX_BAR_STEPS,
        num_instruments=grid.NUM_INSTRUMENTS,
        max_seq_len=config.max_seq_len,
        rule=config.rule,
        open_summary_rate=config.open_summary_rate,
        fill_rate=config.fill_rate,
    )
