"""A base, a bridge to it and the bridge's encoder, small and of random weights, as folders."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from meloformer.bridge.attribute_heads import AttributeHeads, AttributeHeadsConfig, save_heads
from meloformer.bridge.bridge_folder import BridgeFacts, save_bridge
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import model_fingerprint, save_model
from meloformer.tokens.vocabulary import EOS, OFFSET, Kind, fingerprint
from tests.bridge.text_encoders import WIDTH as TEXT_WIDTH
from tests.bridge.text_encoders import write_qwen3
from tests.layouts import tiny_config

WIDTH = 32


def write_base(folder: Path, seed: int = 0) -> Path:
    """A run folder whose model ends its bars soon."""
    torch.manual_seed(seed)
    config = tiny_config(
        num_layers=4, width=WIDTH, ffn_width=WIDTH, num_heads=2, open_summary_rate=0.3
    )
    model = MuseFormer(config)
    # At random a bar would go on for hundreds of tokens: prefer those that end it.
    with torch.no_grad():
        model.token_embedding.weight[:, 0] = 1.0
        model.token_embedding.weight[OFFSET[Kind.BAR] : OFFSET[Kind.METRE], 0] = 2.0
        model.token_embedding.weight[EOS, 0] = 2.0
    metadata = {"tokenizer": fingerprint()}
    save_model(folder / "model", config, model.state_dict(), metadata)
    return folder


def write_models(folder: Path) -> Path:
    """base/, qwen/, bridge/ with attribute heads; plain_bridge/ and soft_prompt/ without."""
    write_base(folder / "base")
    settings = write_qwen3(folder / "qwen") / "config.json"
    # Its tokenizer knows few words: captions are many tokens.
    longer = json.loads(settings.read_text()) | {"max_position_embeddings": 1024}
    settings.write_text(json.dumps(longer))
    encoder = TextEncoder.load(folder / "qwen", "cpu")
    torch.manual_seed(0)
    bridge = QFormer(
        QFormerConfig(
            text_width=TEXT_WIDTH,
            summary_width=WIDTH,
            width=WIDTH,
            num_layers=1,
            num_heads=2,
            ffn_width=WIDTH,
        )
    )
    facts = BridgeFacts.of(
        bridge,
        base={"fingerprint": model_fingerprint(folder / "base/model"), "width": WIDTH},
        encoder=encoder.facts(),
        mean_D=torch.zeros(WIDTH),
        std_D=torch.ones(WIDTH),
    )
    for name, layer in (("bridge", 3), ("plain_bridge", 3), ("soft_prompt", 0)):
        save_bridge(folder / name / "model", replace(facts, layer=layer), bridge.state_dict())
    heads = AttributeHeads(
        AttributeHeadsConfig(text_width=TEXT_WIDTH, encoder_fingerprint=encoder.fingerprint)
    )
    save_heads(folder / "bridge/model", heads)
    return folder
