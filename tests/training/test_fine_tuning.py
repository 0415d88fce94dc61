"""Whole runs that start from another's weights, or keep more than the weights of the last step."""

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.command_line import parse_flags, run_recipe
from meloformer.errors import CheckpointError
from meloformer.model.weights import find_model_folder, load_model, load_weights
from meloformer.training.checkpoint import step_folders
from meloformer.training.config import TrainConfig
from meloformer.training.metrics import METRICS_NAME, VALIDATION_NAME

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def base_flags(chorale_shards: Path) -> list[str]:
    return (
        f"--data {chorale_shards} --config {ROOT}/ds_configs/zero2.json --model_size tiny "
        "--max_seq_len 256 --batch_size 2 --gradient_accumulation_steps 1 --num_workers 0 "
        "--learning_rate 1e-3 --warmup_steps 1 --validation_rows 2 --device cpu --samples 0 "
        "--max_steps 3 --save_every 2"
    ).split()


@pytest.fixture(scope="module")
def averaging(
    recipe: ModuleType, base_flags: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a run that keeps an average."""
    output = tmp_path_factory.mktemp("runs") / "averaging"
    train(recipe, [*base_flags, "--ema", "0.9", "--output", str(output)])
    return output


def train(recipe: ModuleType, flags: list[str]) -> None:
    recipe.main(parse_flags(TrainConfig, flags))


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / METRICS_NAME).read_text().splitlines()]


def refusal(recipe: ModuleType, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What launch/train.py says when it exits with 2, in one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run_recipe(recipe.main, TrainConfig, flags)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) == 1, said
    return said


def test_averaged_weights_stand_beside_the_models_and_have_scores_of_their_own(
    averaging: Path,
) -> None:
    for folder in (averaging, *step_folders(averaging)):
        raw, averaged = (load_weights(folder / name) for name in ("model", "model_ema"))
        assert raw.keys() == averaged.keys()
        assert sum(not torch.equal(raw[name], averaged[name]) for name in raw) > 30
        assert find_model_folder(folder, "ema") == folder / "model_ema"
        assert find_model_folder(folder) == folder / "model"
    assert find_model_folder(averaging / "model_ema") == averaging / "model_ema"
    load_model(averaging / "model_ema")
    (line,) = map(json.loads, (averaging / VALIDATION_NAME).read_text().splitlines())
    assert line["all"]["num_notes"] == line["ema_all"]["num_notes"]
    # The average of a loss that falls fast is behind it.
    assert line["ema_all"]["per_token"] > line["all"]["per_token"]
    assert line["ema_none"]["per_token"] > line["none"]["per_token"]
    assert "attributes, averaged weights" in (averaging / "train.log").read_text()


def test_a_resumed_run_ends_with_the_average_of_an_undisturbed_one(
    averaging: Path, recipe: ModuleType, base_flags: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "resumed"
    shutil.copytree(averaging, output)
    shutil.rmtree(step_folders(output)[-1])
    flags = [*base_flags, "--ema", "0.9", "--output", str(output), "--resume", "auto"]
    train(recipe, flags)
    assert losses(output) == losses(averaging)
    found, expected = (load_weights(run / "model_ema") for run in (output, averaging))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("ema", "message"), [("0", "started with --ema 0.9;"), ("0.99", "started with --ema 0.9;")]
)
def test_a_run_goes_on_with_its_own_average_only(
    ema: str,
    message: str,
    averaging: Path,
    recipe: ModuleType,
    base_flags: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*base_flags, "--ema", ema, "--output", str(averaging), "--resume", "auto"]
    assert message in refusal(recipe, flags, capsys)


def test_no_average_is_refused_with_what_there_is(averaging: Path, tmp_path: Path) -> None:
    shutil.copytree(averaging / "model", tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"no averaged weights \(model_ema/\).*--ema 0\.999"):
        find_model_folder(tmp_path, "ema")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        find_model_folder(averaging / "model", "ema")


@pytest.mark.parametrize("source", ["", "checkpoints/step-2", "model", "model_ema"])
def test_weights_of_a_run_a_step_or_a_model_folder_enter_unchanged(
    source: str, averaging: Path, recipe: ModuleType, base_flags: list[str], tmp_path: Path
) -> None:
    """Another length and another rule are other settings of the same weights."""
    other = ["--max_seq_len", "512", "--attention", "museformer", "--batch_size", "1"]
    flags = [*base_flags, *other, "--init_from", str(averaging / source)]
    prepared = recipe.prepare(parse_flags(TrainConfig, [*flags, "--output", str(tmp_path / "run")]))
    session = recipe.Session(prepared)
    entered = session.engine.full_weights()
    session.close()
    expected = load_weights(find_model_folder(averaging / source))
    assert entered.keys() == expected.keys()
    # Trained in bf16 or not, the weights themselves are those of the folder.
    assert all(torch.equal(entered[name], expected[name]) for name in expected)


def test_weights_of_another_size_are_refused_with_both_sizes(
    averaging: Path,
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*base_flags, "--model_size", "small", "--init_from", str(averaging)]
    said = refusal(recipe, [*flags, "--output", str(tmp_path / "run")], capsys)
    assert re.search(r"found .*num_layers 4, width 128.* expected num_layers 8, width 512", said)
    assert "--model_size tiny" in said
    assert not (tmp_path / "run").exists()


def test_frozen_weights_are_those_that_entered_and_the_rest_is_checked_and_trained(
    averaging: Path,
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    flags = [*base_flags, "--check_gradients", "on", "--output", str(output)]
    flags += ["--init_from", str(averaging)]
    freeze = ["--freeze", "embedding", "summary_start", "layers.1-3"]
    train(recipe, [*flags, *freeze])
    before, after = (load_weights(run / "model") for run in (averaging, output))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(("layers.3.", "final_norm")) for name in moved)
    log = (output / "train.log").read_text()
    assert re.search(r"--freeze embedding .*: parameters: [\d,]+ trained \([\d.]+%\)", log)
    assert "gradients are those of a single process" in log

    resume = [*flags, "--resume", "auto"]
    said = refusal(recipe, resume, capsys)
    assert "--freeze not given: the run in --output was started with embedding summary_st" in said
    said = refusal(recipe, [*flags, "--output", str(tmp_path / "b"), "--freeze", "layer.1"], capsys)
    assert "--freeze layer.1: names nothing" in said and not (tmp_path / "b").exists()
