"""Turn a text into the summaries of a piece with a trained Diffusion Bridge.

python launch/inference_diffusion_bridge.py --checkpoint runs/<name> --text "calm piano in D minor"

python launch/inference_diffusion_bridge.py --checkpoint runs/<name> --text "..." --num_chunks 160
--output summary_tokens.pt --steps 10 --solver heun --guidance 2 --seed 0

The file holds one tensor (num_chunks, width) in the scale of the MuseFormer that the bridge was
trained for; `torch.load(path, weights_only=True)` reads it.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from meloformer.bridge.bridge_folder import model_type_of
from meloformer.bridge.bridges import BridgeWeights, load_bridge
from meloformer.bridge.summarising import MAX_BARS
from meloformer.bridge.text_to_summaries import (
    FlowConfig,
    encoder_of,
    save_summaries,
    summaries_of_texts,
)
from meloformer.command_line import check_output_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName, choose_device


@dataclass(frozen=True, kw_only=True)
class InferenceDiffusionBridgeConfig:
    """Flags of launch/inference_diffusion_bridge.py.

    Args:
        checkpoint: run folder, step folder or model folder of a Diffusion Bridge.
        text: what the piece is to be like.
        num_chunks: summaries, one per bar.
        output: the file.
        weights: those of the last step, their moving average, or the average where there is one.
        text_encoder: folder or name of the encoder; the one that the bridge names if not given.
        seed: of the noise that the flow begins with.
        device: where to compute.
        flow: how the bridge is asked.
    """

    checkpoint: Path
    text: str
    num_chunks: int = 160
    output: Path = Path("summary_tokens.pt")
    weights: BridgeWeights = "auto"
    text_encoder: str | None = None
    seed: int = 0
    device: DeviceName = "auto"
    flow: FlowConfig = field(default_factory=FlowConfig)

    def __post_init__(self) -> None:
        check_output_file("--output", self.output)
        if not 1 <= self.num_chunks <= MAX_BARS:
            raise ConfigError(f"--num_chunks {self.num_chunks}: allowed 1 to {MAX_BARS}")
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: allowed 0 or more")


def main(config: InferenceDiffusionBridgeConfig) -> None:
    """Load, encode, solve, write."""
    device = choose_device(config.device)
    bridge = load_bridge(config.checkpoint, device, config.weights)
    if model_type_of(bridge.model) != "diffusion_bridge":
        raise ConfigError(
            f"--checkpoint {config.checkpoint}: found a Q-Former, allowed: a Diffusion Bridge; "
            f"for a Q-Former: launch/generate.py --text ... --bridge {config.checkpoint}"
        )
    encoder = encoder_of(bridge, config.text_encoder, device)
    print(
        f"{bridge.folder}: {bridge.weights} weights, {encoder.name}, {config.flow.steps} steps of "
        f"{config.flow.solver}, guidance {config.flow.guidance:g}, seed {config.seed}, {device}"
    )
    started = time.perf_counter()
    (summaries_SD,) = summaries_of_texts(
        bridge, encoder, [config.text], config.num_chunks, config.flow, seed=config.seed
    )
    save_summaries(config.output, summaries_SD)
    print(f"{config.output}: shape {tuple(summaries_SD.shape)}")
    print(f"{time.perf_counter() - started:.2f} seconds")


if __name__ == "__main__":
    run_recipe(main, InferenceDiffusionBridgeConfig)
