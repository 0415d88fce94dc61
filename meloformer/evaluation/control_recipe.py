"""The judge of control from the names of models and captions to its report."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from meloformer.bridge.bridges import BridgeWeights
from meloformer.bridge.text_to_summaries import FlowConfig
from meloformer.evaluation.control import judge_control
from meloformer.evaluation.control_generator import load_generator
from meloformer.evaluation.control_report import check_output, report_lines, save_report
from meloformer.evaluation.control_settings import ControlJudgeConfig
from meloformer.generation.injecting import InjectingConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.model.weights import Weights
from meloformer.progress import shown
from meloformer.shards.reader import ShardFolder


def judge_bridge(
    checkpoint: Path,
    bridge: Path,
    data: str,
    output: Path,
    judge: ControlJudgeConfig,
    *,
    weights: Weights,
    bridge_weights: BridgeWeights,
    text_encoder: str | None,
    device: str,
    injecting: InjectingConfig,
    flow: FlowConfig,
    sampling: SamplingConfig,
    seed: int,
) -> None:
    """Load, judge, write, print; the flags of launch/evaluate.py say what each means.

    Raises:
        MeloFormerError: something is missing, damaged, or does not fit.
    """
    check_output(output)
    folder = ShardFolder.open(data)
    generator = load_generator(
        checkpoint,
        bridge,
        device=device,
        weights=weights,
        bridge_weights=bridge_weights,
        text_encoder=text_encoder,
        flow=flow,
        sampling=sampling,
        injecting=injecting,
    )
    with shown("judging", "pieces") as tell:
        findings = judge_control(
            generator,
            folder,
            judge,
            seed=seed,
            on_progress=lambda part, done, total: tell(done, total, part),
        )
    facts = generator.describe() | _settings(data, judge, sampling, seed)
    save_report(output, findings, facts, seed)
    print("\n".join(report_lines(findings, facts, seed)))
    print(output)


def _settings(
    data: str, judge: ControlJudgeConfig, sampling: SamplingConfig, seed: int
) -> dict[str, Any]:
    """What decides the figures, without the places of this machine."""
    return {
        "data": Path(data).name,
        "captions": judge.captions.name if judge.captions else None,
        "seed": seed,
        "judge": {k: v for k, v in asdict(judge).items() if k != "captions"},
        "sampling": asdict(sampling),
    }
