"""How long it takes from a text to 160 summaries: encoder, Q-Former, Diffusion Bridge by its steps.

    python launch/bench/bridge.py
    python launch/bench/bridge.py --qformer runs/<name> --diffusion_bridge runs/<name>
    python launch/bench/bridge.py --device cpu --text_encoder minilm --json bridge.json

Without trained bridges their default shapes are timed with random weights, and so is the text
encoder where no trained bridge and no flag names one. The columns: the median of the timed calls,
the way from the fastest to the slowest as a share of it, and what a call takes on the device.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from meloformer.benchmarks.bench_tables import table_console
from meloformer.benchmarks.bridge_bench import (
    TEXT,
    BridgeBench,
    bridge_table,
    claimed,
    measure,
    random_diffusion_bridge,
    random_encoder,
    random_qformer,
)
from meloformer.benchmarks.circumstances import circumstances
from meloformer.bridge.bridges import LoadedBridge, load_bridge
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_to_summaries import encoder_of
from meloformer.command_line import check_json_file, run_recipe
from meloformer.errors import ConfigError
from meloformer.model.device import DeviceName, choose_device

ROOT = Path(__file__).resolve().parents[2]
_UNGIVEN_ROUNDS = {"cuda": 50, "mps": 10, "cpu": 5}


@dataclass(frozen=True, kw_only=True)
class BenchBridgeConfig:
    """Flags of launch/bench/bridge.py."""

    qformer: Path | None = None
    """Run or model folder of a Q-Former; random weights if not given."""
    diffusion_bridge: Path | None = None
    """Run or model folder of a Diffusion Bridge; random weights if not given."""
    text_encoder: str | None = None
    """Folder or name; the one of a given bridge, else random weights, if not given."""
    text: str = TEXT
    """What is encoded; a random encoder knows no other words than those of the ungiven one."""
    num_bars: int = 160
    """Summaries of a text."""
    summary_width: int = 512
    """Of random bridges."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Texts at once; each is measured."""
    steps: tuple[int, ...] = (1, 4, 10, 20)
    """Steps of Euler; each is measured."""
    heun_steps: int = 10
    """Steps of Heun, two calls each."""
    guidance: float = 1.0
    """Of the Diffusion Bridge; other than 1 doubles its rows."""
    rounds: int | None = None
    """Timed calls of each; more on CUDA than elsewhere if not given."""
    device: DeviceName = "auto"
    """Where to compute."""
    json: Path | None = None
    """File for the figures."""

    def __post_init__(self) -> None:
        check_json_file(self.json)
        for name in ("num_bars", "summary_width", "heun_steps", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value}: allowed 1 or more")
        for name in ("batch_sizes", "steps"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ConfigError(f"--{name} {' '.join(map(str, values))}: allowed 1 or more each")


def bench_bridge(config: BenchBridgeConfig) -> None:
    kind = choose_device(config.device)
    device = torch.device(kind)
    given = {
        name: load_bridge(path, device, "auto")
        for name, path in (
            ("Q-Former", config.qformer),
            ("Diffusion Bridge", config.diffusion_bridge),
        )
        if path is not None
    }
    encoder = find_encoder(config.text_encoder, list(given.values()), device)
    widths = (encoder.width, config.summary_width, device)
    bench = BridgeBench(
        encoder=encoder,
        qformer=given.get("Q-Former") or random_qformer(*widths),
        diffusion_bridge=given.get("Diffusion Bridge") or random_diffusion_bridge(*widths),
        text=config.text,
        num_bars=config.num_bars,
        steps=config.steps,
        heun_steps=config.heun_steps,
        guidance=config.guidance,
        device=device,
        rounds=config.rounds or _UNGIVEN_ROUNDS[kind],
    )
    found = [row for batch in config.batch_sizes for row in measure(bench, batch)]
    untrained = [name for name in ("Q-Former", "Diffusion Bridge") if name not in given]
    title = (
        f"a text of {bench.num_tokens} tokens to {config.num_bars} summaries on {kind}, medians "
        f"of {bench.rounds}; encoder: {encoder.name}, {encoder.facts()['dtype']}; random weights: "
        f"{' and '.join(untrained) or 'none'}"
    )
    table_console().print(bridge_table(title, found))
    if config.json:
        figures = claimed(found) | circumstances(device, ROOT) | {"title": title, "rows": found}
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


def find_encoder(
    name: str | None, bridges: list[LoadedBridge], device: torch.device
) -> TextEncoder:
    """The encoder of the given bridges, which all have to be trained with it; else a random one."""
    if not bridges:
        return TextEncoder.load(name, device) if name else random_encoder(device)
    encoder = encoder_of(bridges[0], name, device)
    for bridge in bridges[1:]:
        bridge.check_encoder(encoder.fingerprint)
    return encoder


if __name__ == "__main__":
    run_recipe(bench_bridge, BenchBridgeConfig)
