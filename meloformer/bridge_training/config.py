"""The flags that the recipes of both bridges have, and what they become."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from meloformer.bridge.encoder_folder import DEFAULT_TEXT_ENCODER
from meloformer.command_line import check_at_least
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName
from meloformer.training.ds_config import DEFAULT_DS_CONFIG
from meloformer.training.ema import check_decay
from meloformer.training.optimizer import OptimizerConfig
from meloformer.training.schedule import ScheduleConfig

# With another of these a resumed run would train on other rows, or another function.
FIXED_SETTINGS = ("seed", "languages", "ema", "objective")


@dataclass(frozen=True, kw_only=True)
class BridgeTrainConfig:
    """Flags of a bridge's training.

    Args:
        config: ds_configs file: how to partition. It is used with and without a launcher.
        targets: folder of launch/extract_summaries.py.
        captions: captions.jsonl of launch/caption.py.
        states: folder of text states; encoded from --captions on the first start, and found again
            later; <captions>-<encoder> beside the captions if not given.
        text_encoder: Hugging Face id or folder; minilm where the hub cannot be reached. The one
            that --states holds, if --captions is not given.
        checkpoint: run of the MuseFormer that the bridge is for; refused where the targets are of
            another.
        allow_closed_base: take targets of a MuseFormer that never learned to follow summaries.
        languages: of the texts to train on, such as en zh; all if not given.
        output: run folder; runs/<kind>-<UTC time> if not given.
        heads: train the small heads that hear tempo, key and other attributes in a text, before the
            bridge, from --captions; generation writes into the prefix what they hear. They are kept
            beside the text states, for other bridges on the same captions. off leaves everything to
            the summaries.
        batch_size: rows per rank at the first start; later starts follow the number of ranks, so
            that an optimizer step keeps its rows.
        epochs: passes over the windows; each pass draws one text per window.
        max_steps: optimizer steps; beats --epochs.
        seed: of weights, order, texts and noise.
        save_every: optimizer steps between checkpoints; 0 saves at the end only.
        validate_every: optimizer steps between validations; 0 validates at the end only.
        keep_last: checkpoints to keep; 0 keeps all.
        resume: none, auto (newest intact checkpoint of --output) or one of its checkpoints. Auto
            if not given and a launcher has restarted the run, none otherwise.
        ema: decay of a moving average of the weights, such as 0.999, written to model_ema/ and
            validated beside the weights themselves; 0 for none.
        dry_run: say what would be done, and stop.
        device: where to compute.
        schedule: learning rate.
        optimizer: AdamW or Muon, and its settings.
    """

    config: Path = DEFAULT_DS_CONFIG
    targets: Path
    captions: Path | None = None
    states: Path | None = None
    text_encoder: str = DEFAULT_TEXT_ENCODER
    checkpoint: Path | None = None
    allow_closed_base: bool = False
    languages: tuple[str, ...] = ()
    output: Path | None = None
    heads: Literal["on", "off"] = "on"
    batch_size: int = 32
    epochs: int = 30
    max_steps: int | None = None
    seed: int = 0
    save_every: int = 500
    validate_every: int = 100
    keep_last: int = 2
    resume: str | None = None
    ema: float = 0.0
    dry_run: bool = False
    device: DeviceName = "auto"
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(learning_rate=3e-4))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        lowest = {
            "batch_size": 1,
            "epochs": 1,
            "max_steps": 1,
            "seed": 0,
            "save_every": 0,
            "validate_every": 0,
            "keep_last": 0,
        }
        check_at_least(self, lowest)
        check_decay(self.ema)
        if self.captions is None and self.states is None:
            raise ConfigError(
                "found neither --captions nor --states; allowed: captions.jsonl of "
                "launch/caption.py, or a folder of text states made from it"
            )

    def to_json(self) -> dict[str, Any]:
        """Plain data for run.json."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def check_same_settings(asked: dict[str, Any], known: dict[str, Any]) -> None:
    """Refuse to go on with settings under which rows or losses are others.

    Args:
        asked: of this start, as run.json holds them.
        known: of the run in --output.

    Raises:
        ConfigError: names the setting and both values.
    """
    for name in (*FIXED_SETTINGS, "model_type", "model"):
        if asked.get(name) != known.get(name):
            raise ConfigError(
                f"{name}: found {asked.get(name)}, the run in --output was started with "
                f"{known.get(name)}; allowed: the same flags, or another --output"
            )
