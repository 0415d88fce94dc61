"""A commit in a small repository, and trained parts that nobody has trained."""

import subprocess
from pathlib import Path

import pytest

from meloformer.bridge.attribute_heads import save_heads
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.model.weights import model_fingerprint, save_model
from meloformer.release.source import Commit, clean_commit
from meloformer.tokens.vocabulary import fingerprint
from tests.bridge.bases import random_base
from tests.bridge.bridge_folders import write_bridge
from tests.bridge.text_encoders import WIDTH, write_qwen3
from tests.generation.steered_models import BASE_WIDTH, SAID, heads_that_say


def git(root: Path, *words: str) -> None:
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *own, *words], cwd=root, check=True, capture_output=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with what every release needs."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "VERSION").write_text("1.2.3\n")
    for name in ("CHANGELOG.md", "RELEASE_NOTES.md"):
        (folder / name).write_text("# Words\n\n## 1.2.3 (2027-01-31)\n\n## 1.2.2 (2026-12-31)\n")
    (folder / "constraints.txt").write_text("torch==2.13.0\n")
    git(folder, "init")
    git(folder, "add", "-A")
    git(folder, "commit", "-m", "all")
    return folder


@pytest.fixture
def commit(root: Path) -> Commit:
    return clean_commit(root)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_base(width=BASE_WIDTH, ffn_width=32, open_summary_rate=0.3)
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, model.config, model.state_dict(), {"tokenizer": fingerprint()})
    return folder


@pytest.fixture(scope="session")
def bridge_run(
    tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, base_folder: Path
) -> Path:
    """A Diffusion Bridge with heads, for that base and that encoder."""
    run = tmp_path_factory.mktemp("bridge")
    encoder = TextEncoder.load(encoder_folder)
    settings = DiffusionBridgeConfig(
        text_width=WIDTH,
        summary_width=BASE_WIDTH,
        num_queries=24,
        width=32,
        num_layers=2,
        num_heads=2,
        ffn_width=64,
    )
    base = {"fingerprint": model_fingerprint(base_folder), "width": BASE_WIDTH}
    write_bridge(run / "model", DiffusionBridge(settings), encoder, base)
    save_heads(run / "model", heads_that_say(SAID, encoder))
    return run
