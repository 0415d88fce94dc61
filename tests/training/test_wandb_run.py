"""Weights & Biases, without its server."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from meloformer.errors import ConfigError
from meloformer.training.config import TrainConfig, resolve
from meloformer.training.wandb_run import WandbRun, check_installed

is_installed = find_spec("wandb") is not None


@pytest.mark.skipif(is_installed, reason="wandb is installed here")
def test_without_the_package_the_flag_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_installed()
    with pytest.raises(ConfigError, match="--wandb: "):
        resolve(TrainConfig(data=("shards",), wandb="music"), "cpu", time_utc="now")


@pytest.mark.slow
@pytest.mark.skipif(not is_installed, reason="wandb, an optional package, is not installed")
def test_figures_stay_in_the_run_folder_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    check_installed()
    for start in (1, 2):  # the second start repeats a step
        run = WandbRun("meloformer-test", tmp_path, "f" * 32, {"model_size": "tiny"})
        for step in range(start, start + 3):
            run.log({"train/loss": 1 / step, "train/mfu": None}, step)
        run.close()
    wandb.teardown()  # what the end of a process does: files are written by another one
    written = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 2 and all(b"train/loss" in path.read_bytes() for path in written)
