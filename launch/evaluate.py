"""Judge a trained model: does a text decide what it writes?

    python launch/evaluate.py --control --checkpoint runs/<name> --bridge runs/<bridge> \
        --data data_shards/<name> --captions captions.jsonl --output reports/control
    python launch/evaluate.py --control ... --language zh --sections --n 500 --bars 32
    python launch/evaluate.py --control ... --rows text shuffled none --ways summaries attributes
    python launch/evaluate.py --control ... --strategy adapter --adapter runs/<adapter>
    python launch/evaluate.py --control ... --captions midicaps.jsonl   (the protocol of text2midi)

Unseen pieces in wordings that training never saw: rows text / shuffled / none / true, by summaries
alone, with attributes told, and strictly kept, or those of --rows and --ways; how bars come back,
and how different two pieces of one text are; nats per note; the right piece among 100. Writes
control.md, control.json and pieces.jsonl. Captions: launch/caption.py writes them.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meloformer.bridge.bridges import BridgeWeights
from meloformer.bridge.text_to_summaries import FlowConfig
from meloformer.command_line import run_recipe
from meloformer.errors import ConfigError
from meloformer.evaluation.control import judge_control
from meloformer.evaluation.control_generator import load_generator
from meloformer.evaluation.control_report import check_output, report_lines, save_report
from meloformer.evaluation.control_settings import ControlJudgeConfig
from meloformer.generation.injecting import InjectingConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.device import DeviceName, choose_device
from meloformer.model.weights import Weights
from meloformer.progress import shown
from meloformer.shards.reader import ShardFolder


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Flags of launch/evaluate.py.

    Args:
        control: judge what texts do.
        checkpoint: run folder, step folder or model folder of a MuseFormer.
        weights: those of the last step, or their moving average.
        bridge: run folder or model folder of a Q-Former or of a Diffusion Bridge.
        bridge_weights: auto takes the average where there is one.
        text_encoder: another place of the bridge's encoder, such as a folder.
        data: shards that the captions were written for.
        output: folder of the report.
        seed: of draws, noise, sampling and intervals.
        device: where the models run.
        judge: what is judged.
        injecting: what injected summaries do to the model's own.
        flow: how a Diffusion Bridge is asked.
        sampling: how bold the choice of a token is.
    """

    control: bool = False
    checkpoint: Path | None = None
    weights: Weights = "raw"
    bridge: Path | None = None
    bridge_weights: BridgeWeights = "auto"
    text_encoder: str | None = None
    data: str | None = None
    output: Path = Path("reports/control")
    seed: int = 0
    device: DeviceName = "auto"
    judge: ControlJudgeConfig = field(default_factory=ControlJudgeConfig)
    injecting: InjectingConfig = field(default_factory=InjectingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if not self.control:
            raise ConfigError("nothing to evaluate: found no --control; allowed: --control")
        for flag in ("checkpoint", "bridge", "data"):
            if getattr(self, flag) is None:
                raise ConfigError(f"--control without --{flag}: found none; allowed: its folder")


def main(config: EvaluateConfig) -> None:
    """Load, judge, write, print."""
    assert config.checkpoint and config.bridge and config.data
    check_output(config.output)
    folder = ShardFolder.open(config.data)
    generator = load_generator(
        config.checkpoint,
        config.bridge,
        device=choose_device(config.device),
        weights=config.weights,
        bridge_weights=config.bridge_weights,
        text_encoder=config.text_encoder,
        flow=config.flow,
        sampling=config.sampling,
        injecting=config.injecting,
    )
    with shown("judging", "pieces") as tell:
        findings = judge_control(
            generator,
            folder,
            config.judge,
            seed=config.seed,
            on_progress=lambda part, done, total: tell(done, total, part),
        )
    facts = generator.describe() | settings(config)
    save_report(config.output, findings, facts, config.seed)
    print("\n".join(report_lines(findings, facts, config.seed)))
    print(config.output)


def settings(config: EvaluateConfig) -> dict[str, Any]:
    """What decides the figures, without the places of this machine."""
    return {
        "data": Path(str(config.data)).name,
        "captions": config.judge.captions.name if config.judge.captions else None,
        "seed": config.seed,
        "judge": {k: v for k, v in asdict(config.judge).items() if k != "captions"},
        "sampling": asdict(config.sampling),
    }


if __name__ == "__main__":
    run_recipe(main, EvaluateConfig)
