"""Adapters of random weights, alone and in folders as their training writes them."""

from pathlib import Path

import torch

from meloformer.bridge.adapter import SummaryAdapter, SummaryAdapterConfig, bridge_facts
from meloformer.bridge.bridge_folder import BridgeFacts, save_bridge
from meloformer.bridge.bridges import load_bridge


def random_adapter(width: int, seed: int = 0, hidden_width: int = 24) -> SummaryAdapter:
    """One that has left the blend far behind, in every direction."""
    mean_D, std_D = torch.linspace(-3, 3, width), torch.linspace(0.5, 2, width)
    config = SummaryAdapterConfig(summary_width=width, hidden_width=hidden_width)
    adapter = SummaryAdapter(config, mean_D, std_D)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.15, generator=generator)
    return adapter.eval()


def write_adapter(run: Path, bridge_run: Path, seed: int = 0) -> Path:
    """The run folder of an adapter to a trained bridge and its base."""
    bridge = load_bridge(bridge_run)
    adapter = random_adapter(len(bridge.mean_D), seed)
    facts = BridgeFacts.of(
        adapter,
        base=bridge.base,
        encoder=bridge.encoder,
        mean_D=bridge.mean_D,
        std_D=bridge.std_D,
        layer=bridge.layer,
    ).with_extra(bridge=bridge_facts(bridge))
    save_bridge(run / "model", facts, adapter.state_dict())
    return run
