"""All that an adapter is trained from, small: shards' windows, a base, targets, captions, a bridge.

Base and bridge have random weights and belong together; the windows hold real bars.
"""

import json
from pathlib import Path

import torch

from meloformer.bridge.bridge_folder import BridgeFacts, save_bridge
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.summarising import bare_window, summaries_of_windows
from meloformer.bridge.targets import SummaryTargets, TargetWindow
from meloformer.bridge.targets_writer import writing_targets
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.captions.caption_set import FORMAT_NAME, FORMAT_VERSION, WindowCaptions, facts_path
from meloformer.model.weights import model_fingerprint, save_model
from meloformer.shards.manifest import SPLITS
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import fingerprint
from tests.bridge.bases import random_base
from tests.bridge.text_encoders import SENTENCES, write_qwen3
from tests.bridge.text_encoders import WIDTH as TEXT_WIDTH

WIDTH = 32
# Windows of a split, and the bars of each, in turn.
NUM_WINDOWS = {"train": 12, "valid": 5, "test": 1}
BARS = (1, 3, 2)
SHAPE = {"width": 32, "num_layers": 1, "num_heads": 2, "ffn_width": 32, "num_queries": 8}


def write_adapter_data(folder: Path, shards: Path) -> Path:
    """base/, other_base/, targets/, captions.jsonl, encoder/, qformer/ and diffusion_bridge/."""
    for seed, name in enumerate(("base", "other_base")):
        model = random_base(seed, width=WIDTH, ffn_width=WIDTH, open_summary_rate=0.3)
        metadata = {"tokenizer": fingerprint()}
        save_model(folder / name / "model", model.config, model.state_dict(), metadata)
    _write_targets(folder, shards)
    _write_captions(folder)
    encoder = TextEncoder.load(write_qwen3(folder / "encoder"))
    widths = {"text_width": TEXT_WIDTH, "summary_width": WIDTH}
    targets = SummaryTargets.open(folder / "targets")
    bridges = {
        "qformer": QFormer(QFormerConfig(**widths, **SHAPE)),
        "diffusion_bridge": DiffusionBridge(DiffusionBridgeConfig(**widths, **SHAPE)),
    }
    generator = torch.Generator().manual_seed(0)
    for name, bridge in bridges.items():
        with torch.no_grad():
            for parameter in bridge.parameters():
                parameter.normal_(std=0.15, generator=generator)
        facts = BridgeFacts.of(
            bridge,
            base=targets.base,
            encoder=encoder.facts(),
            mean_D=targets.mean,
            std_D=targets.std,
        )
        save_bridge(folder / name / "model", facts, bridge.state_dict())
    return folder


def _write_targets(folder: Path, shards: Path) -> None:
    """True summaries of the first bars of some pieces."""
    opened = ShardFolder.open(shards)
    base = random_base(width=WIDTH, ffn_width=WIDTH, open_summary_rate=0.3)
    settings = {
        "base": {
            "fingerprint": model_fingerprint(folder / "base/model"),
            "folder": "runs/base",
            "width": WIDTH,
            "num_layers": base.config.num_layers,
            "max_seq_len": base.config.max_seq_len,
            "open_summary_rate": base.config.open_summary_rate,
            "tokenizer": fingerprint(),
        },
        "layer": 3,
        "max_bars": SHAPE["num_queries"],
        "overlap": 0,
        "attributes": "absent",
        "shards_manifest_sha256": opened.manifest_sha256,
    }
    with writing_targets(folder / "targets", settings) as writer:
        for split in SPLITS:
            index = opened.split(split)
            windows = [
                TargetWindow(index.key(piece), 0, BARS[number % len(BARS)], f"{piece}.mid")
                for number, piece in enumerate(range(min(NUM_WINDOWS[split], index.num_pieces)))
            ]
            ids = [
                bare_window(index.read(n), index.bar_starts(n), window.first_bar, window.last_bar)
                for n, window in enumerate(windows)
            ]
            writer.write(split, windows, summaries_of_windows(base, ids))
        writer.finish()


def _write_captions(folder: Path) -> None:
    targets = SummaryTargets.open(folder / "targets")
    path = folder / "captions.jsonl"
    with path.open("w") as file:
        for split in SPLITS:
            for number, window in enumerate(targets.split(split).windows):
                file.write(
                    WindowCaptions(
                        location=window.location,
                        key=window.key,
                        split=split,
                        first_bar=window.first_bar,
                        last_bar=window.last_bar,
                        captions={"en": [SENTENCES[number % len(SENTENCES)]]},
                        templates={"en": ["t"]},
                        mentions={"en": [[]]},
                        attributes={},
                    ).to_line()
                )
    facts = {"name": FORMAT_NAME, "format": FORMAT_VERSION}
    facts_path(path).write_text(json.dumps(facts))
