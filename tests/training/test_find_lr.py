"""launch/tools/find_lr.py in this process: the curve of a real model, and what stays behind."""

import importlib.util
import json
import math
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from meloformer.command_line import parse_flags, run_recipe
from meloformer.errors import ConfigError
from meloformer.tokens.vocabulary import VOCAB_SIZE
from meloformer.training.config import TrainConfig
from meloformer.training.find_lr import FindLRConfig

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 24


@pytest.fixture(scope="module")
def find_lr_recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "find_lr_recipe", ROOT / "launch/tools/find_lr.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def flags(shards: Path, *more: str) -> list[str]:
    return (
        f"--data {shards} --config {ROOT}/ds_configs/zero2.json --model_size tiny --device cpu "
        f"--max_seq_len 128 --batch_size 2 --gradient_accumulation_steps 1 --num_workers 0 "
        f"--collate pack --num_steps {NUM_STEPS} --lowest 1e-4 --highest 30"
    ).split() + list(more)


def test_a_test_of_a_real_model_stops_at_the_turn_and_leaves_only_what_was_asked_for(
    find_lr_recipe: ModuleType,
    chorale_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scratch, here = tmp_path / "scratch", tmp_path / "here"
    scratch.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(here)
    with pytest.raises(SystemExit) as ending:
        arguments = flags(chorale_shards, "--json", "lr.json")
        run_recipe(find_lr_recipe.main, FindLRConfig, arguments)
    assert ending.value.code == 0
    assert not list(scratch.iterdir())
    assert {path.name for path in here.iterdir()} == {"lr.json", "lr.png"}

    found = json.loads((here / "lr.json").read_text())
    rates = np.array(found["rates"])
    assert rates[0] == pytest.approx(1e-4)
    assert np.diff(np.log(rates)) == pytest.approx(math.log(3e5) / (NUM_STEPS - 1))
    assert len(rates) < NUM_STEPS, "nothing trains at a rate of 30"
    assert found["losses"][0] == pytest.approx(math.log(VOCAB_SIZE), rel=0.05)
    assert min(found["smoothed"]) < found["losses"][0] - 0.5
    assert 1e-4 < found["learning_rate"] < found["turned"] < 30
    said = capsys.readouterr().out
    assert f"--learning_rate {found['learning_rate']:.1e}" in said


def test_every_flag_but_the_range_goes_to_training_as_it_is(chorale_shards: Path) -> None:
    asked = parse_flags(
        FindLRConfig,
        flags(
            chorale_shards,
            "--seed",
            "7",
            "--beta2",
            "0.99",
            "--fuse",
            "off",
            "--freeze",
            "embedding",
        ),
    )
    training = asked.training(Path("there"))
    own = {"lowest", "highest", "num_steps", "json"}
    names = {item.name for item in fields(FindLRConfig)} - own
    assert names <= {item.name for item in fields(TrainConfig)}
    assert all(getattr(training, name) == getattr(asked, name) for name in names)
    assert training.max_steps == NUM_STEPS and training.output == Path("there")
    assert training.optimizer.beta2 == 0.99 and training.seed == 7
    assert training.freeze == ("embedding",)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"lowest": 0.0}, "--lowest 0 "),
        ({"lowest": 1e-2, "highest": 1e-3}, "highest rate above the lowest"),
        ({"highest": math.inf}, "--highest inf"),
        ({"lowest": math.nan}, "--lowest nan"),
        ({"num_steps": 3}, "--num_steps 3: allowed: 20 or more"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"json": Path("nowhere/lr.json")}, "--json nowhere/lr.json"),
    ],
)
def test_a_range_that_is_none_is_refused_by_its_flag(wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FindLRConfig(**wrong)


def test_missing_shards_are_one_line_and_code_2(
    find_lr_recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        run_recipe(find_lr_recipe.main, FindLRConfig, flags(tmp_path / "absent"))
    assert ending.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
