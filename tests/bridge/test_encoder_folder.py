"""What a folder of an encoder has to hold, and what is read off its files."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from meloformer.bridge.encoder_folder import (
    EncoderSettings,
    folder_fingerprint,
)
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.errors import ConfigError
from tests.bridge.hub_mirror import running_mirror
from tests.bridge.text_encoders import write_qwen3


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("qwen3"))


def test_a_folder_that_is_not_whole_is_refused(qwen3_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        TextEncoder.load(tmp_path / "nothing")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = tmp_path / f"without-{name}"
        shutil.copytree(qwen3_folder, folder)
        (folder / name).unlink()
        with pytest.raises(ConfigError, match=f"no {name}"):
            TextEncoder.load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(
    qwen3_folder: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(qwen3_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text("{broken")
    with pytest.raises(ConfigError) as refusal:
        TextEncoder.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_weights_that_lack_a_layer_are_refused_and_not_filled_with_random_numbers(
    qwen3_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(qwen3_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("num_hidden_layers", "max_window_layers"):
        config[key] = 3
    config["layer_types"] = ["full_attention"] * 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="tensors are missing"):
        TextEncoder.load(tmp_path)


def test_the_fingerprint_changes_with_all_that_decides_the_states(
    qwen3_folder: Path, tmp_path: Path
) -> None:
    settings = EncoderSettings.of_folder(qwen3_folder)
    first = folder_fingerprint(qwen3_folder, settings)
    copy = tmp_path / "copy"
    shutil.copytree(qwen3_folder, copy)
    assert folder_fingerprint(copy, settings) == first
    assert folder_fingerprint(copy, replace(settings, instruction="Query:")) != first
    assert folder_fingerprint(copy, replace(settings, pooling="mean")) != first
    (copy / "README.md").write_text("a card decides nothing")
    assert folder_fingerprint(copy, settings) == first
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        changed = tmp_path / f"changed-{name}"
        shutil.copytree(qwen3_folder, changed)
        content = bytearray((changed / name).read_bytes())
        content[-2] ^= 1
        (changed / name).write_bytes(bytes(content))
        assert folder_fingerprint(changed, settings) != first


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 384}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_a_folders_own_pooling_is_taken(
    qwen3_folder: Path, tmp_path: Path, content: dict[str, object], pooling: str
) -> None:
    shutil.copytree(qwen3_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(content))
    assert EncoderSettings.of_folder(tmp_path).pooling == pooling


def test_a_pooling_that_is_not_done_here_is_refused(qwen3_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(qwen3_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ConfigError, match="found pooling pooling_mode_max_tokens"):
        EncoderSettings.of_folder(tmp_path)


def test_an_encoder_comes_from_the_hub_that_hf_endpoint_names(
    qwen3_folder: Path, tmp_path: Path
) -> None:
    find = "from meloformer.bridge.encoder_folder import *; print(find_encoder_folder('a/encoder'))"
    with running_mirror("a/encoder", qwen3_folder) as (address, asked):
        # A process of its own: the hub's client reads its address when it is imported.
        variables = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", find],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path) and any("model.safetensors" in path for path in asked)
    settings = EncoderSettings.of_folder(qwen3_folder)
    assert EncoderSettings.of_folder(folder) == settings
    assert folder_fingerprint(folder, settings) == folder_fingerprint(qwen3_folder, settings)
