"""Folders of bridges with random weights, written as training writes them."""

from pathlib import Path
from typing import Any

import torch

from meloformer.bridge.bridge_folder import BridgeFacts, save_bridge
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.model.injection import INJECTION_LAYER

SUMMARY_WIDTH = 8
BASE = {"fingerprint": "b" * 64, "width": SUMMARY_WIDTH}


def write_bridge(
    folder: Path,
    model: Any,
    encoder: TextEncoder,
    base: dict[str, Any] = BASE,
    layer: int = INJECTION_LAYER,
    **extra: Any,
) -> Path:
    """A run folder's model/, for states of an encoder.

    Args:
        folder: of the model itself.
        model: its weights are drawn anew, so that every part has a say.
        encoder: whose states it reads.
        base: facts of the model that it makes summaries for.
        layer: of that model, after which they enter.
        extra: more for config.json.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15, generator=generator)
    facts = BridgeFacts.of(
        model,
        base=base,
        encoder=encoder.facts(),
        mean_D=torch.linspace(-3, 3, base["width"]),
        std_D=torch.linspace(0.5, 2, base["width"]),
        layer=layer,
    ).with_extra(**extra)
    save_bridge(folder, facts, model.state_dict())
    return folder
