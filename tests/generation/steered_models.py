"""Small bridges that answer, heads that say what they are told to, and what is asked of them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from meloformer.bridge.attribute_heads import (
    GATES,
    NUM_VALUES,
    AttributeHeads,
    AttributeHeadsConfig,
)
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.generation.controls import ControlConfig
from meloformer.generation.text import (
    Order,
    TextConfig,
    orders_of,
)
from meloformer.midi import grid
from meloformer.model.injection import INJECTION_LAYER
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import Attributes
from tests.bridge.bridge_folders import write_bridge
from tests.bridge.text_encoders import WIDTH

BASE_WIDTH = 32
FINGERPRINT = "f" * 64
# More than so many bars are joined from windows.
NUM_QUERIES = 24
SAID = Attributes(metre=grid.METRE_INDEX[(3, 4)], tempo=9, key=4, instruments=(1, 41))


def write_run(
    folder: Path,
    kind: type[nn.Module],
    config: type,
    encoder: TextEncoder,
    layer: int = INJECTION_LAYER,
    **extra: Any,
) -> Path:
    shape: dict[str, Any] = {
        "text_width": WIDTH,
        "summary_width": BASE_WIDTH,
        "num_queries": NUM_QUERIES,
        "width": 32,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_width": 64,
    }
    facts = {"fingerprint": FINGERPRINT, "width": BASE_WIDTH}
    write_bridge(folder / "model", kind(config(**shape)), encoder, facts, layer, **extra)
    return folder


def heads_that_say(
    said: Attributes, encoder: TextEncoder, has_drums: bool | None = None
) -> AttributeHeads:
    """Heads that hear the same in every text, and that its instruments are all that play."""
    heads = AttributeHeads(
        AttributeHeadsConfig(text_width=WIDTH, encoder_fingerprint=encoder.fingerprint, width=8)
    )
    told = {name: getattr(said, name, None) for name in NUM_VALUES} | {"drums": has_drums}
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.zero_()
        for gate, value in zip(heads.value_gates, told.values(), strict=True):
            gate.bias.fill_(-5.0 if value is None else 5.0)
        for name, value in told.items():
            if value is not None:
                heads.values[name].bias[int(value)] = 50.0
        heads.instrument_gates.bias.fill_(5.0 if said.instruments else -5.0)
        heads.naming.bias.fill_(-50.0)
        heads.naming.bias[list(said.instruments)] = 50.0
    assert len(heads.instrument_gates.bias) == len(GATES) - len(NUM_VALUES)
    return heads


def orders(
    config: TextConfig, base: MuseFormer, controls: ControlConfig | None = None, **settings: int
) -> list[Order]:
    return orders_of(config, controls or ControlConfig(), base, FINGERPRINT, **settings)


def summaries(order: Order) -> torch.Tensor:
    """(B, S, D) that a piece is written on."""
    assert order.injection is not None and order.injection.mask_BS.all()
    return order.injection.summaries_BSD
