import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from meloformer.bridge.bridges import load_bridge
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge.text_to_summaries import (
    FlowConfig,
    encoder_of,
    load_summaries,
    save_summaries,
    summaries_of_texts,
)
from meloformer.command_line import run_recipe
from meloformer.errors import CheckpointError, ConfigError
from tests.bridge.bridge_folders import SUMMARY_WIDTH, write_bridge
from tests.bridge.text_encoders import SENTENCES, WIDTH, write_qwen3
from tests.launch.recipes import load_recipe

SHAPE: dict[str, Any] = {
    "text_width": WIDTH,
    "summary_width": SUMMARY_WIDTH,
    "num_queries": 20,
    "width": 32,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_width": 64,
}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """A run of a Diffusion Bridge, without an average."""
    folder = tmp_path_factory.mktemp("run")
    bridge = DiffusionBridge(DiffusionBridgeConfig(**SHAPE))
    write_bridge(folder / "model", bridge, TextEncoder.load(encoder_folder))
    return folder


@pytest.fixture(scope="module")
def qformer_run(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("qformer")
    qformer = QFormer(QFormerConfig(**SHAPE))
    write_bridge(folder / "model", qformer, TextEncoder.load(encoder_folder))
    return folder


def infer(*arguments: object) -> int:
    """Exit code of launch/inference_diffusion_bridge.py."""
    recipe = load_recipe("inference_diffusion_bridge.py")

    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.main, recipe.InferenceDiffusionBridgeConfig, [*map(str, arguments)])
    return int(ended.value.code or 0)


def test_either_bridge_answers_in_the_scale_of_the_base(run: Path, qformer_run: Path) -> None:
    for folder in (run, qformer_run):
        bridge = load_bridge(folder)
        encoder = encoder_of(bridge)
        made = summaries_of_texts(bridge, encoder, SENTENCES[:2], 7, FlowConfig())
        assert made.shape == (2, 7, SUMMARY_WIDTH)
        normalised = bridge.model.sample(encoder.encode(SENTENCES[:2]), 7, seed=0)
        torch.testing.assert_close((made - bridge.mean_D) / bridge.std_D, normalised)
        assert not torch.allclose(made[0], made[1]), "texts differ"


def test_each_text_of_a_long_answer_is_answered_as_if_it_were_alone(
    run: Path, qformer_run: Path
) -> None:
    for folder in (run, qformer_run):
        bridge = load_bridge(folder)
        encoder = encoder_of(bridge)
        texts, seeds = [SENTENCES[0], SENTENCES[1], SENTENCES[0]], [3, 4, 5]
        made = summaries_of_texts(bridge, encoder, texts, 50, FlowConfig(), seed=seeds)
        assert made.shape == (3, 50, SUMMARY_WIDTH)
        for row, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
            for asked in (seed, [seed]):
                (alone,) = summaries_of_texts(bridge, encoder, [text], 50, FlowConfig(), seed=asked)
                torch.testing.assert_close(made[row], alone, atol=1e-4, rtol=1e-4)


def test_how_the_flow_is_asked_reaches_the_bridge(run: Path) -> None:
    bridge = load_bridge(run)
    encoder = encoder_of(bridge)
    answers = [
        summaries_of_texts(bridge, encoder, SENTENCES[:1], 5, flow, seed=seed)
        for flow, seed in (
            (FlowConfig(), 0),
            (FlowConfig(), 1),
            (FlowConfig(steps=3), 0),
            (FlowConfig(solver="heun"), 0),
            (FlowConfig(guidance=3.0), 0),
        )
    ]
    for number, answer in enumerate(answers):
        assert not any(torch.allclose(answer, other) for other in answers[number + 1 :])


def test_another_encoder_than_the_bridges_is_refused(
    run: Path, tmp_path: Path, encoder_folder: Path
) -> None:
    bridge = load_bridge(run)
    assert encoder_of(bridge, encoder_folder).width == WIDTH
    with pytest.raises(CheckpointError, match="found a bridge from the encoder"):
        encoder_of(bridge, write_qwen3(tmp_path, seed=1))


def test_a_recipe_writes_one_tensor_and_says_shape_and_seconds_last(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--checkpoint", run, "--text", SENTENCES[0], "--num_chunks", 12]
    for name in ("a.pt", "b.pt"):
        assert infer(*flags, "--output", tmp_path / name, "--seed", 3) == 0
    *_, shape, seconds = capsys.readouterr().out.strip().splitlines()
    assert shape.endswith(f"shape (12, {SUMMARY_WIDTH})") and seconds.endswith(" seconds")
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found.shape == (12, SUMMARY_WIDTH) and found.dtype == torch.float32
    assert torch.equal(found, torch.load(tmp_path / "b.pt", weights_only=True))
    assert torch.equal(found, load_summaries(tmp_path / "a.pt", SUMMARY_WIDTH, 160))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "b.pt"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--text", " "], "is empty"),
        (["--num_chunks", 161], "--num_chunks 161: allowed 1 to 160"),
        (["--num_chunks", 0], "--num_chunks 0: allowed 1 to 160"),
        (["--weights", "ema"], "found no averaged weights (model_ema/)"),
        (["--steps", 0], "--steps 0: allowed 1 or more"),
        (["--guidance", -1], "--guidance -1.0: allowed 0 or more"),
        (["--seed", -1], "--seed -1: allowed 0 or more"),
        (["--solver", "rk4"], "rk4"),
    ],
)
def test_a_recipe_refuses_with_one_line_and_writes_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[object],
    said: str,
) -> None:
    given = [
        "--checkpoint",
        run,
        "--output",
        tmp_path / "a.pt",
        "--num_chunks",
        4,
        "--text",
        "calm",
    ]
    assert infer(*given, *flags) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_qformer_is_sent_to_the_recipe_that_takes_it(
    qformer_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", qformer_run, "--output", tmp_path / "a.pt", "--text", "calm"]
    assert infer(*given) == 2
    error = capsys.readouterr().err
    assert "launch/generate.py --text" in error and error.count("\n") == 1


def test_an_average_is_taken_where_there_is_one_and_said(
    run: Path, tmp_path: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--text", "calm", "--num_chunks", 4, "--output", tmp_path / "a.pt"]
    assert infer("--checkpoint", run, *flags) == 0
    assert "raw weights" in capsys.readouterr().out
    for name in ("model", "model_ema"):
        write_bridge(
            tmp_path / "run" / name,
            DiffusionBridge(DiffusionBridgeConfig(**SHAPE)),
            TextEncoder.load(encoder_folder),
        )
    assert infer("--checkpoint", tmp_path / "run", *flags) == 0
    assert "ema weights" in capsys.readouterr().out


def test_summaries_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "summary_tokens.pt"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_summaries(path, 8, 160)
    for wrong, said in (
        ({"summaries": torch.zeros(4, 8)}, "found a dict"),
        (
            torch.zeros(4, 9),
            r"found a tensor of \(4, 9\); expected one tensor of 1 to 160 bars x 8",
        ),
        (torch.zeros(161, 8), r"\(161, 8\)"),
        (torch.zeros(0, 8), r"\(0, 8\)"),
        (torch.zeros(1, 4, 8), r"\(1, 4, 8\)"),
        (torch.full((4, 8), float("nan")), "no finite floats"),
        (torch.zeros(4, 8, dtype=torch.int64), "no finite floats"),
    ):
        torch.save(wrong, path)
        with pytest.raises(ConfigError, match=said):
            load_summaries(path, 8, 160)
    # Some break the reader in ways of its own: a stack without an end, a memo without an entry.
    for damaged in (
        b"no tensor",
        b"",
        b"qzH\xe5.)\xa3",
        b"h8\x88V\xc0",
        b"\x80\xfbh8",
        b"MThd\0\0",
    ):
        path.write_bytes(damaged)
        with warnings.catch_warnings(), pytest.raises(ConfigError, match="cannot be read"):
            warnings.simplefilter("error")
            load_summaries(path, 8, 160)


def test_nothing_of_a_strangers_file_is_executed(tmp_path: Path) -> None:
    path, witness = tmp_path / "evil.pt", tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple:
            return witness.touch, ()

    torch.save(Evil(), path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_summaries(path, 8, 160)
    assert not witness.exists()


def test_what_cannot_be_written_leaves_no_half(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        save_summaries(tmp_path / "missing" / "a.pt", torch.zeros(2, 2))
