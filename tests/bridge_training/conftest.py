"""What tests of bridges' training share: captions and targets, made once."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meloformer.bridge_training.qformer import QFormerTrainConfig
from meloformer.command_line import parse_flags
from tests.bridge.text_encoders import write_qwen3
from tests.bridge_training.pair_folders import write_captions, write_targets

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "--bridge_width 32 --bridge_layers 2 --bridge_heads 4 --bridge_ffn_width 64 --batch_size 8 "
    "--max_steps 6 --heads off --learning_rate 3e-3 --device cpu "
    f"--config {ROOT}/ds_configs/zero2.json"
).split()


@pytest.fixture(autouse=True)
def unchanged_environment() -> Iterator[None]:
    """A run in this process says in the environment which rank it is; nobody else should hear."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with encoder/, targets/ and captions.jsonl."""
    folder = tmp_path_factory.mktemp("pairs")
    write_qwen3(folder / "encoder")
    write_targets(folder / "targets")
    write_captions(folder / "captions.jsonl")
    return folder


@pytest.fixture(scope="session")
def words(data: Path) -> Callable[..., list[str]]:
    """Flags of a small run on these; more of them replace those before."""

    def flags_for(output: Path | str, **more: Any) -> list[str]:
        values = {
            "targets": data / "targets",
            "captions": data / "captions.jsonl",
            "text_encoder": data / "encoder",
            "output": output,
            **more,
        }
        given = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return [*SMALL, *given]

    return flags_for


@pytest.fixture(scope="session")
def flags(words: Callable[..., list[str]]) -> Callable[..., QFormerTrainConfig]:
    """The same, parsed."""
    return lambda output, **more: parse_flags(QFormerTrainConfig, words(output, **more))
