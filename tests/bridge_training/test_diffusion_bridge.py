"""A Diffusion Bridge through the common training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from meloformer.bridge.bridges import load_bridge
from meloformer.bridge.targets import SummaryTargets
from meloformer.bridge.text_to_summaries import FlowConfig, encoder_of, summaries_of_texts
from meloformer.bridge_training.diffusion_bridge import DiffusionBridgeTrainConfig
from meloformer.bridge_training.loop import train
from meloformer.bridge_training.prepare import prepare
from meloformer.command_line import parse_flags
from meloformer.errors import ConfigError
from tests.bridge_training.pair_folders import WIDTH, WORDS
from tests.training.launching import python, run, torchrun

Words = Callable[..., list[str]]
RECIPE = "launch/train_diffusion_bridge.py"
LIMIT_SECONDS = 1200


def trained(flags: list[str]) -> Path:
    """The run folder of a training in this process."""
    config = parse_flags(DiffusionBridgeTrainConfig, flags)
    prepared = prepare(config, config.kind)
    assert train(prepared) == 0
    return prepared.output


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def whole(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a checkpoint after four."""
    return trained(words(tmp_path_factory.mktemp("runs") / "whole", save_every=4))


def test_a_resumed_run_draws_the_same_noise_times_and_drops(
    whole: Path, words: Words, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    trained(words(again, save_every=4, resume=again / "checkpoints/step-4"))
    assert losses(again) == losses(whole)
    for name in ("model", "model_ema"):
        found, wanted = (
            load_file(folder / name / "model.safetensors") for folder in (again, whole)
        )
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_run_keeps_an_average_without_being_asked_and_it_is_taken(
    whole: Path, data: Path
) -> None:
    bridge = load_bridge(whole, weights="auto")
    assert bridge.weights == "ema"
    made = summaries_of_texts(bridge, encoder_of(bridge), WORDS["en"], 9, FlowConfig())
    assert made.shape == (len(WORDS["en"]), 9, WIDTH)
    # Hardly trained, it answers with noise, in the scale of the targets none the less.
    targets = SummaryTargets.open(data / "targets")
    assert (made.mean((0, 1)) - targets.mean).abs().max() < targets.std.max()


def test_its_own_flags_decide_and_a_resumed_run_keeps_them(
    whole: Path, words: Words, tmp_path: Path
) -> None:
    settings = json.loads((whole / "model" / "config.json").read_text())
    assert settings["model_type"] == "diffusion_bridge"
    assert (settings["width"], settings["num_layers"], settings["times"]) == (32, 2, "uniform")
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    for flags in ({"condition_drop": 0.2}, {"times": "logit_normal"}, {"ema": 0.5}):
        with pytest.raises(ConfigError, match="allowed: the same"):
            trained(words(again, resume="auto", **flags))
    with pytest.raises(ConfigError, match="condition_drop"):
        parse_flags(DiffusionBridgeTrainConfig, words(again, condition_drop=1))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_have_the_losses_of_one_process(words: Words, tmp_path: Path) -> None:
    """Noise, times and drops belong to rows, wherever they are computed."""
    config = "ds_configs/zero3.json"  # it gathers weights as modules are called
    for command, name, rows in ((python(), "one", 8), (torchrun(2), "two", 4)):
        flags = words(tmp_path / name, batch_size=rows, config=config, condition_drop=0.5)
        done = run([*command, RECIPE, *flags], limit_seconds=LIMIT_SECONDS)
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
