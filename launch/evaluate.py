"""Judge music: folders of MIDI files side by side, a trained model, or what a text decides.

    python launch/evaluate.py --midi real ours other --output reports/beside
    python launch/evaluate.py --midi generated.zip --against data_shards/<name> --output reports/new
    python launch/evaluate.py --checkpoint runs/<name> --data data_shards/<name> \
        --output reports/model --n 100 --bars 32
    python launch/evaluate.py --control --checkpoint runs/<name> --bridge runs/<bridge> \
        --data data_shards/<name> --captions captions.jsonl --output reports/control
    python launch/evaluate.py --control ... --language zh --sections --n 500 --bars 32
    python launch/evaluate.py --control ... --rows text shuffled none --ways summaries attributes
    python launch/evaluate.py --control ... --strategy adapter --adapter runs/<adapter>
    python launch/evaluate.py --control ... --captions midicaps.jsonl   (the protocol of text2midi)

--midi takes what launch/shard_data.py takes, of any system. Statistics of every piece with 95 %
intervals, how bars come back, what is copied from the training split of --against, and files that
cannot be read. --checkpoint alone: nats of held-out pieces by kind of token and context length;
then pieces are sampled and judged beside the held-out ones. Both write report.html,
statistics.json and pieces.jsonl; see docs/evaluation.md.

--control: unseen pieces in wordings that training never saw: rows text / shuffled / none / true, by
summaries alone, with attributes told, and strictly kept, or those of --rows and --ways; how bars
come back, and how different two pieces of one text are; nats per note; the right piece among 100.
Writes control.md, control.json and pieces.jsonl. Captions: launch/caption.py writes them.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from meloformer.bridge.bridges import BridgeWeights
from meloformer.bridge.text_to_summaries import FlowConfig
from meloformer.command_line import changed_flags, run_recipe
from meloformer.errors import ConfigError
from meloformer.evaluation.control_recipe import judge_bridge
from meloformer.evaluation.control_settings import ControlJudgeConfig
from meloformer.evaluation.statistics_recipes import judge_folders, judge_model
from meloformer.evaluation.statistics_settings import StatisticsConfig
from meloformer.generation.injecting import InjectingConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.weights import Weights

Mode = Literal["control", "midi", "model"]


def _names(*config_classes: type[Any]) -> set[str]:
    return {field.name for one in config_classes for field in fields(one)}


# Flags that a mode cannot do without.
_NEEDED: dict[Mode, tuple[str, ...]] = {
    "control": ("checkpoint", "bridge", "data"),
    "midi": (),
    "model": ("checkpoint", "data"),
}
# Flags that a mode reads besides those of all; any other would do nothing.
_OF_ALL = {"output", "seed", "device"}
_OF_MODELS = {"checkpoint", "weights", "data"}
_READ: dict[Mode, set[str]] = {
    "control": {"control", "bridge", "bridge_weights", "text_encoder"}
    | _OF_MODELS
    | _names(ControlJudgeConfig, InjectingConfig, FlowConfig, SamplingConfig),
    "midi": {"midi", "against", "n"} | _names(StatisticsConfig),
    "model": {"n", "bars"} | _OF_MODELS | _names(StatisticsConfig, SamplingConfig),
}
_CALLED: dict[Mode, str] = {
    "control": "--control",
    "midi": "--midi",
    "model": "a model alone",
}
_ALLOWED = "allowed: --midi, or --checkpoint and --data, or --control with its flags"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Flags of launch/evaluate.py.

    Args:
        control: judge what texts do.
        midi: judge these folders, archives or lists of MIDI files.
        against: shards whose held-out pieces are the reference of --midi, and whose training split
            is looked through for copies.
        checkpoint: run folder, step folder or model folder of a MuseFormer.
        weights: those of the last step, or their moving average.
        bridge: run folder or model folder of a Q-Former or of a Diffusion Bridge.
        bridge_weights: auto takes the average where there is one.
        text_encoder: another place of the bridge's encoder, such as a folder.
        data: shards that the captions were written for, or whose held-out pieces a model is judged
            by.
        output: folder of the report; reports/control, reports/midi or reports/model if not given.
        seed: of draws, noise, sampling and intervals.
        device: where the models run.
        judge: what is judged.
        statistics: how folders and models are measured.
        injecting: what injected summaries do to the model's own.
        flow: how a Diffusion Bridge is asked.
        sampling: how bold the choice of a token is.
    """

    control: bool = False
    midi: tuple[str, ...] = ()
    against: str | None = None
    checkpoint: Path | None = None
    weights: Weights = "raw"
    bridge: Path | None = None
    bridge_weights: BridgeWeights = "auto"
    text_encoder: str | None = None
    data: str | None = None
    output: Path | None = None
    seed: int = 0
    device: DeviceName = "auto"
    judge: ControlJudgeConfig = field(default_factory=ControlJudgeConfig)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    injecting: InjectingConfig = field(default_factory=InjectingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        for flag in _NEEDED[self.mode]:
            if getattr(self, flag) is None:
                raise ConfigError(f"{self._named} without --{flag}: found none; {_ALLOWED}")
        for flag in changed_flags(self):
            if flag not in _READ[self.mode] | _OF_ALL:
                readers = [_CALLED[mode] for mode in _CALLED if flag in _READ[mode]]
                raise ConfigError(
                    f"{self._named} with --{flag}, which goes with {' or '.join(readers)}; "
                    f"{_ALLOWED}"
                )

    @property
    def mode(self) -> Mode:
        """What is judged.

        Raises:
            ConfigError: nothing, or two things at once.
        """
        if self.control and self.midi:
            raise ConfigError(f"--control with --midi: found both; {_ALLOWED}")
        if self.control or self.midi:
            return "control" if self.control else "midi"
        if self.checkpoint is None and self.data is None:
            raise ConfigError(
                f"nothing to evaluate: found no --midi, --checkpoint or --control; {_ALLOWED}"
            )
        return "model"

    @property
    def _named(self) -> str:
        if self.mode != "model":
            return f"--{self.mode}"
        return "--data" if self.checkpoint is None else "--checkpoint"

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return self.output or Path("reports") / self.mode


def main(config: EvaluateConfig) -> None:
    """Judge what is asked for, write and print the report."""
    if config.mode == "midi":
        return judge_folders(
            config.midi,
            config.against,
            config.folder,
            config.statistics,
            num_held_out=config.judge.n,
            seed=config.seed,
        )
    assert config.checkpoint and config.data
    if config.mode == "model":
        return judge_model(
            config.checkpoint,
            config.data,
            config.folder,
            config.statistics,
            weights=config.weights,
            device=choose_device(config.device),
            sampling=config.sampling,
            num_pieces=config.judge.n,
            bars=config.judge.bars,
            seed=config.seed,
        )
    assert config.bridge
    return judge_bridge(
        config.checkpoint,
        config.bridge,
        config.data,
        config.folder,
        config.judge,
        weights=config.weights,
        bridge_weights=config.bridge_weights,
        text_encoder=config.text_encoder,
        device=choose_device(config.device),
        injecting=config.injecting,
        flow=config.flow,
        sampling=config.sampling,
        seed=config.seed,
    )


if __name__ == "__main__":
    run_recipe(main, EvaluateConfig)
