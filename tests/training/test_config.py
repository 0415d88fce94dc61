"""Flags of launch/train.py: every one of the contract, and what is chosen where one is absent."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from meloformer.command_line import parse_flags
from meloformer.errors import ConfigError
from meloformer.model.attention import Backend
from meloformer.model.config import SIZES
from meloformer.model.counts import num_parameters
from meloformer.model.masks import HeadGroup
from meloformer.training.config import (
    TrainConfig,
    fuses,
    model_config,
    newest_shards,
    resolve,
)
from meloformer.training.ranks import check_gpus
from meloformer.training.run_folder import Run, check_same_run, start_facts

# As the contract writes them.
CONTRACT = """--config --data --output --model_size tiny|small|base|large --batch_size
--gradient_accumulation_steps --max_seq_len --num_workers --epochs --max_steps --learning_rate
--warmup_steps --seed --collate bucket|pack --attention museformer|hid|halves|full
--attention_precision auto|bf16|fp32 --phases on|off --save_every --validate_every --keep_last
--resume auto|none|PATH --init_from --dry_run --device auto|cuda|mps|cpu
--checkpointing none|ffn|layer"""


def contract_flags() -> list[list[str]]:
    cases = []
    words = CONTRACT.split()
    for i, word in enumerate(words):
        if not word.startswith("--"):
            continue
        following = words[i + 1] if i + 1 < len(words) else ""
        if word == "--dry_run":
            cases.append([word])
        elif following and not following.startswith("--"):
            cases += [[word, value] for value in following.split("|")]
        else:
            cases.append([word, "32"])
    return cases


@pytest.mark.parametrize("flags", contract_flags(), ids=" ".join)
def test_every_flag_of_the_contract_is_read(flags: list[str]) -> None:
    config = parse_flags(TrainConfig, flags)
    name = flags[0].removeprefix("--")
    owner = config.schedule if hasattr(config.schedule, name) else config
    value = getattr(owner, name)
    said = value[0] if isinstance(value, tuple) else value
    assert str(said).removesuffix(".0") == (flags[1] if flags[1:] else "True")


def test_flags_after_the_script_may_carry_the_launchers_local_rank() -> None:
    flags = ["--local_rank=1", "--config", "ds_configs/zero1.json", "--batch_size", "2"]
    assert parse_flags(TrainConfig, flags).batch_size == 2


def test_a_gpu_gets_the_full_size_and_a_cpu_a_small_one_which_is_said(tmp_path: Path) -> None:
    flags = TrainConfig(data=(str(tmp_path),))
    config, lines = resolve(flags, "cuda", time_utc="now")
    assert (config.model_size, config.max_seq_len, config.phases) == ("small", 8192, "on")
    assert config.output == Path("runs/small-now") and not lines
    config, lines = resolve(flags, "cpu", time_utc="now")
    assert (config.model_size, config.max_seq_len, config.phases) == ("tiny", 1024, "off")
    assert len(lines) == 1 and re.search("tiny.*1024", lines[0])


def test_what_was_given_is_never_replaced(tmp_path: Path) -> None:
    flags = TrainConfig(
        data=(str(tmp_path),),
        model_size="base",
        max_seq_len=256,
        phases="on",
        output=tmp_path / "mine",
    )
    config, lines = resolve(flags, "cpu", time_utc="now")
    assert (config.model_size, config.max_seq_len, config.phases) == ("base", 256, "on")
    assert config.output == tmp_path / "mine" and not lines


def test_pack_mode_starts_in_its_last_phase(tmp_path: Path) -> None:
    config, _ = resolve(TrainConfig(data=(str(tmp_path),), collate="pack"), "cuda", time_utc="now")
    assert config.phases == "off"


def test_ungiven_data_are_the_shards_made_last_and_without_any_the_remedy_is_named(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="make shard-data"):
        newest_shards(tmp_path)
    for seconds, name in enumerate(("older", "newer", "oldest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
        os.utime(tmp_path / name / "manifest.json", (0, {"oldest": 0}.get(name, 1 + seconds)))
    assert newest_shards(tmp_path) == tmp_path / "newer"


@pytest.mark.parametrize("share", ["0", "1.1", "-0.5"])
def test_a_headroom_that_is_no_share_of_the_memory_is_refused(share: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory_headroom .* above 0, up to 1"):
        parse_flags(TrainConfig, ["--memory_headroom", share])


@pytest.mark.parametrize("size", ["32", "96", "256"])
def test_a_block_size_that_the_kernel_has_no_tiles_for_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match=rf"--block_size {size}: allowed: 64 or 128"):
        parse_flags(TrainConfig, ["--block_size", size])


def test_the_block_size_is_written_down_and_may_change_between_starts(tmp_path: Path) -> None:
    settings = [
        resolve(
            parse_flags(TrainConfig, ["--block_size", size, "--data", str(tmp_path)]),
            "cuda",
            time_utc="now",
        )[0].to_json()
        for size in ("128", "64")
    ]
    assert [one["block_size"] for one in settings] == [128, 64]
    known = Run(
        run_id="id",
        settings=settings[0],
        global_batch=48,
        num_steps=10,
        manifest_sha256="sum",
        starts=[],
    )
    check_same_run(known, settings[1], "sum")


@pytest.mark.parametrize("backend", ["flex", "dense"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_auto_fuses_beside_compiled_attention_where_a_rank_holds_all_weights(
    backend: Backend, stage: int
) -> None:
    assert fuses("auto", backend, stage) == (backend == "flex" and stage in (1, 2))
    assert fuses("on", backend, stage) and not fuses("off", backend, stage)


def test_more_ranks_than_gpus_are_refused_with_the_command_that_fits() -> None:
    check_gpus(2, 2)
    with pytest.raises(ConfigError, match=r"8 ranks .* 2 GPU.*torchrun --nproc_per_node 2"):
        check_gpus(8, 2)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_every_size_is_a_model(size: str, tmp_path: Path) -> None:
    flags = parse_flags(TrainConfig, ["--model_size", size, "--data", str(tmp_path)])
    config, _ = resolve(flags, "cuda", time_utc="now")
    assert num_parameters(model_config(config)) > 10**6


def test_a_rule_from_a_file_becomes_the_models_and_stands_in_the_settings(tmp_path: Path) -> None:
    path, groups = tmp_path / "rule.json", [{"same_instrument": True, "bar_distances": [0, 3]}]
    path.write_text(json.dumps(groups))
    flags = parse_flags(TrainConfig, ["--attention", str(path), "--data", str(tmp_path)])
    config, _ = resolve(flags, "cpu", time_utc="now")
    assert model_config(config).rule == (HeadGroup(True, (0, 3)),)
    full = {"order": "bar", "share": 1}
    settings = json.loads(json.dumps(config.to_json()))
    assert settings["attention"] == [groups[0] | full]

    known = Run(
        run_id="id",
        settings=settings,
        global_batch=48,
        num_steps=10,
        manifest_sha256="sum",
        starts=[],
    )
    check_same_run(known, config.to_json(), "sum")
    path.write_text(json.dumps([{**groups[0], "share": 2}]))
    changed, _ = resolve(flags, "cpu", time_utc="now")
    with pytest.raises(
        ConfigError, match=r"--attention .*share.: 2.* was started with .*share.: 1"
    ):
        check_same_run(known, changed.to_json(), "sum")


def test_a_rule_that_is_none_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--attention sparse: .*allowed: museformer"):
        resolve(TrainConfig(data=(str(tmp_path),), attention="sparse"), "cpu", time_utc="now")


def test_urls_and_their_cache_are_flags_and_what_is_written_holds_no_credentials() -> None:
    url = "https://me:secret@host/shards?signature=hidden"
    given = ["--data", url, "plain", "--cache_dir", "/disk", "--cache_gigabytes", "2.5"]
    config, _ = resolve(parse_flags(TrainConfig, given), "cpu", time_utc="now")
    assert config.data == (url, "plain"), "what opens them keeps the credentials"
    assert (config.cache.folder, config.cache.max_bytes) == (Path("/disk"), 2_500_000_000)
    start = start_facts(["train.py", *given], 1, torch.device("cpu"), 0, "abc1234+")
    assert config.to_json()["data"] == ["https://host/shards", "plain"]
    one, _ = resolve(parse_flags(TrainConfig, ["--data", url]), "cpu", time_utc="now")
    assert one.to_json()["data"] == "https://host/shards"
    written = json.dumps([config.to_json(), start])
    assert written.count("https://host/shards") == 2 and '"cache_dir": "/disk"' in written
    assert not any(word in written for word in ("me:", "secret", "signature", "hidden"))
