"""Weights & Biases, without its server."""

import json
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


def records(path: Path) -> Iterator[Any]:
    """What a file of wandb holds: blocks of pieces of records, as LevelDB writes its log."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.slow
@pytest.mark.skipif(not is_installed, reason="wandb, an optional package, is not installed")
def test_figures_stay_in_the_run_folder_when_offline_those_of_repeated_steps_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    check_installed()
    # The first start goes back to a checkpoint, the second one repeats a step.
    starts: tuple[tuple[int, ...], ...] = ((1, 2, 3, 2, 3, 4), (4, 5))
    for steps in starts:
        run = WandbRun("meloformer-test", tmp_path, "f" * 32, {"model_size": "tiny"})
        for step in steps:
            run.log({"train/loss": 1 / step, "train/mfu": None}, step)
        run.close()
    wandb.teardown()  # what the end of a process does: files are written by another one
    written = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(written) == 2
    for path, steps in zip(written, starts, strict=True):
        found = list(records(path))
        history = [
            {"".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in found
            if record.WhichOneof("record_type") == "history"
        ]
        assert [line["step"] for line in history] == list(steps)
        assert [line["train/loss"] for line in history] == [1 / step for step in steps]
        assert "train/mfu" not in history[0]
        # Its own counter has to rise: a figure at a lower one would be left out.
        own = [line["_step"] for line in history]
        assert own == sorted(set(own))
        axes = {record.metric.glob_name: record.metric.step_metric for record in found}
        assert axes["*"] == "step"
