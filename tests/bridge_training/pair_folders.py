"""Captions and targets for tests, written by the writers of both formats.

Pieces are of four kinds, and a kind has its own words and its own summaries: what a bridge learns
shows in its loss.
"""

import json
from pathlib import Path
from typing import Any

import torch

from meloformer.bridge.sinusoids import sinusoids
from meloformer.bridge.targets import TargetWindow
from meloformer.bridge.targets_writer import writing_targets
from meloformer.captions.caption_set import FORMAT_NAME, FORMAT_VERSION, WindowCaptions, facts_path

WIDTH = 16
NUM_PIECES = {"train": 24, "valid": 8, "test": 4}
WORDS = {
    "en": (
        "A fast rock piece in E minor.",
        "A calm piano piece in D major.",
        "Strings play slowly for sixteen bars.",
        "Four beats a bar, at 72 BPM.",
    ),
    "zh": ("E小调的快速摇滚", "一首安静的钢琴曲", "每分钟七十二拍", "D大调"),
}
BASE: dict[str, Any] = {
    "fingerprint": "b" * 64,
    "folder": "runs/base",
    "width": WIDTH,
    "num_layers": 4,
    "max_seq_len": 512,
    "open_summary_rate": 0.3,
    "tokenizer": "t" * 64,
}


def windows_of(split: str) -> list[TargetWindow]:
    """One window per piece, of 3 to 9 bars."""
    return [
        TargetWindow(f"{split}-{i:03}", 0, 3 + i % 7, f"{split}-{i:03}.mid")
        for i in range(NUM_PIECES[split])
    ]


def kind_of(window: TargetWindow) -> int:
    """Which of the four kinds a piece is of."""
    return int(window.key[-3:]) % 4


def write_targets(folder: Path, **base: Any) -> Path:
    """A folder of targets whose summaries tell of the piece's kind and of the bar."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(4, WIDTH, generator=generator)
    settings = {
        "base": {**BASE, **base},
        "layer": 3,
        "max_bars": 160,
        "overlap": 16,
        "attributes": "absent",
        "shards_manifest_sha256": "0" * 64,
    }
    with writing_targets(folder, settings) as writer:
        for split in NUM_PIECES:
            windows = windows_of(split)
            summaries = [
                5
                + 2 * kinds[kind_of(window)]
                + sinusoids(torch.arange(window.bars), WIDTH)
                + 0.1 * torch.randn(window.bars, WIDTH, generator=generator)
                for window in windows
            ]
            writer.write(split, windows, summaries)
        writer.finish()
    return folder


def write_captions(path: Path, *, first_bar: int = 0) -> Path:
    """Captions of all windows in two languages.

    Args:
        path: of captions.jsonl.
        first_bar: another than 0 makes them captions of other windows.
    """
    with path.open("w") as file:
        for split in NUM_PIECES:
            for window in windows_of(split):
                captions = {language: [words[kind_of(window)]] for language, words in WORDS.items()}
                file.write(
                    WindowCaptions(
                        location=window.location,
                        key=window.key,
                        split=split,
                        first_bar=first_bar,
                        last_bar=window.last_bar + first_bar,
                        captions=captions,
                        templates={language: ["t"] for language in WORDS},
                        mentions={language: [[]] for language in WORDS},
                        attributes={},
                    ).to_line()
                )
    facts = {"name": FORMAT_NAME, "format": FORMAT_VERSION}
    facts_path(path).write_text(json.dumps(facts))
    return path
