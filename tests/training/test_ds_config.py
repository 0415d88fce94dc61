import json
from pathlib import Path

import pytest

from meloformer.errors import ConfigError
from meloformer.training.ds_config import (
    RunFacts,
    find_ds_config,
    load_ds_config,
    resolve_ds_config,
)

FILES = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
RUN = RunFacts(
    micro_batch_rows=6, accumulation=8, world_size=4, gradient_clipping=0.5, device="cuda"
)


def write(folder: Path, settings: dict | str) -> Path:
    path = folder / "mine.json"
    path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return path


def resolve(settings: dict, run: RunFacts = RUN) -> dict:
    return resolve_ds_config(settings, run, source="mine.json")


def test_four_partitionings_ship() -> None:
    assert [path.stem for path in FILES] == ["zero1", "zero2", "zero2_offload", "zero3"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_loads_and_leaves_nothing_open(path: Path) -> None:
    resolved = resolve(load_ds_config(path))
    assert "auto" not in json.dumps(resolved)
    assert resolved["train_batch_size"] == 6 * 8 * 4
    assert resolved["gradient_clipping"] == 0.5, "unsaid, DeepSpeed clips at 1.0"
    assert resolved["data_types"]["grad_accum_dtype"] == "fp32"
    assert resolved["managed_gradient_accumulation"] is False
    assert not resolved["zero_optimization"]["overlap_comm"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_hold_nothing_that_accelerate_could_not_read(path: Path) -> None:
    settings = json.loads(path.read_text())
    assert not {"managed_gradient_accumulation", "data_types"} & settings.keys()


@pytest.mark.parametrize(
    ("key", "value", "of_the_run"),
    [
        ("train_micro_batch_size_per_gpu", 5, 6),
        ("gradient_accumulation_steps", 2, 8),
        ("train_batch_size", 1000, 192),
        ("gradient_clipping", 1.0, 0.5),
    ],
)
def test_a_number_that_contradicts_the_run_is_refused_with_both_values(
    key: str, value: float, of_the_run: float
) -> None:
    settings = load_ds_config(FILES[1]) | {key: value}
    with pytest.raises(ConfigError, match=rf"{key} = {value}, the run says {of_the_run}"):
        resolve(settings)


def test_the_same_number_in_both_places_is_no_contradiction() -> None:
    settings = load_ds_config(FILES[1]) | {"train_batch_size": 192}
    assert resolve(settings)["train_batch_size"] == 192


@pytest.mark.parametrize(
    ("stated", "device", "expected"),
    [
        ("auto", "cuda", True),
        ("auto", "cpu", False),
        (True, "cpu", True),
        (False, "cuda", False),
    ],
)
def test_bf16_follows_the_device_unless_the_file_says(
    stated: object, device: str, expected: bool
) -> None:
    settings = load_ds_config(FILES[1]) | {"bf16": {"enabled": stated}}
    run = RunFacts(
        micro_batch_rows=1, accumulation=1, world_size=1, gradient_clipping=0.0, device=device
    )
    assert resolve(settings, run)["bf16"]["enabled"] is expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{not json", "not JSON"),
        ("[]", "found list"),
        ({}, "stage is None"),
        ({"zero_optimization": {"stage": 0}}, "stage is 0"),
        ({"zero_optimization": {"stage": 2, "overlap_comm": True}}, "overlap_comm"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer.device is 'nvme'; allowed: none, cpu",
        ),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "mics_shard_size"),
        (
            {"zero_optimization": {"stage": 2}, "optimizer": {}},
            "found 'optimizer', .* allowed: train_batch_size, ",
        ),
        ({"zero_optimization": {"stage": 2}, "prescale_gradients": True}, "'prescale_gradients'"),
        ({"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}}, "found 'fp16'"),
        ({"zero_optimization": {"stage": 2}, "bf16": True}, "bf16 is true; allowed: an object"),
        ({"zero_optimization": {"stage": 2}, "bf16": {"loss": 1}}, "found bf16.loss"),
        ({"zero_optimization": 2}, "zero_optimization is 2; allowed: an object"),
        ({"zero_optimization": {"stage": True}}, "stage is True"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer is"),
        ({"zero_optimization": {"stage": 2}, "data_types": {}}, "found 'data_types'"),
    ],
)
def test_files_that_say_what_to_compute_are_refused(
    settings: dict | str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_ds_config(write(tmp_path, settings))


def test_an_auto_that_nothing_fills_is_refused() -> None:
    settings = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}
    with pytest.raises(ConfigError, match=r"zero_optimization\.reduce_bucket_size"):
        resolve(settings)


def test_an_absent_file_of_the_users_own_is_never_replaced_by_one_of_ours(tmp_path: Path) -> None:
    assert find_ds_config(Path("zero2.json")).is_file()
    with pytest.raises(ConfigError, match="no such file"):
        find_ds_config(tmp_path / "zero2.json")
