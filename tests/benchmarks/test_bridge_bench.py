import json
from pathlib import Path
from typing import Any

import pytest
import torch

from meloformer.benchmarks.bridge_bench import TEXT, claimed, random_encoder
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.command_line import run_recipe
from tests.bridge.bridge_folders import SUMMARY_WIDTH, write_bridge
from tests.bridge.text_encoders import WIDTH, write_qwen3
from tests.launch.recipes import load_recipe

SHAPE: dict[str, Any] = {
    "text_width": WIDTH,
    "summary_width": SUMMARY_WIDTH,
    "num_queries": 6,
    "width": 32,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_width": 64,
}


def bench(*arguments: object) -> int:
    """Exit code of launch/bench/bridge.py."""
    recipe = load_recipe("bench/bridge.py")
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.bench_bridge, recipe.BenchBridgeConfig, [*map(str, arguments)])
    return int(ended.value.code or 0)


def test_the_random_encoder_has_the_size_of_the_real_one_and_knows_every_word() -> None:
    encoder = random_encoder(torch.device("meta"))
    assert encoder.num_parameters == 595_776_512
    (ids,) = encoder.token_ids([TEXT])
    assert len(ids) == len(TEXT.split()) + 1 and ids[-1] == 0 and 1 not in ids


def test_trained_bridges_are_timed_part_by_part_and_as_a_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = TextEncoder.load(write_qwen3(tmp_path / "encoder"))
    write_bridge(tmp_path / "qformer", QFormer(QFormerConfig(**SHAPE)), encoder)
    write_bridge(tmp_path / "diffusion", DiffusionBridge(DiffusionBridgeConfig(**SHAPE)), encoder)
    given = ["--qformer", tmp_path / "qformer", "--diffusion_bridge", tmp_path / "diffusion"]
    flags = ["--num_bars", 6, "--steps", 1, 4, "--rounds", 1]
    flags += ["--text", "A fast rock piece.", "--json", tmp_path / "found.json"]
    assert bench(*given, *flags) == 0
    table = capsys.readouterr().out
    assert "random weights: none" in " ".join(table.split())
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {(row["name"], row["batch"]): row["ms"] for row in found["rows"]}
    assert {name for name, _ in rows} == {
        "text encoder",
        "Q-Former",
        "Diffusion Bridge, euler 1",
        "Diffusion Bridge, euler 4",
        "Diffusion Bridge, heun 10",
        "text to summaries, Q-Former",
        "text to summaries, Diffusion Bridge, euler 10",
    }
    assert {batch for _, batch in rows} == {1, 8}
    assert found["bridge_qformer"] == rows["text to summaries, Q-Former", 1] / 1000
    whole = rows["text to summaries, Diffusion Bridge, euler 10", 1]
    assert found["bridge_diffusion"] == whole / 1000


def test_what_did_not_run_claims_nothing() -> None:
    rows = [
        {"name": "text to summaries, Q-Former", "batch": 1, "why": "no memory"},
        {"name": "text to summaries, Diffusion Bridge, euler 10", "batch": 8, "ms": 80.0},
    ]
    assert claimed(rows) == {}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", 0], "--steps 0: allowed 1 or more each"),
        (["--rounds", 0], "--rounds 0: allowed 1 or more"),
        (["--qformer", "nowhere"], "nowhere: no such folder"),
        (["--json", "no/such/folder/a.json"], "--json no/such/folder/a.json"),
    ],
)
def test_what_cannot_be_timed_is_refused_with_one_line(
    capsys: pytest.CaptureFixture[str], flags: list[object], said: str
) -> None:
    assert bench(*flags, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
