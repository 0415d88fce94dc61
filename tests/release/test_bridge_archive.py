"""Archives with a bridge: whole, true to what was trained, and at home without a network."""

import sys
from pathlib import Path

import pytest

from meloformer.bridge.bridges import load_bridge
from meloformer.bridge.encoder_folder import EncoderSettings, folder_fingerprint
from meloformer.errors import CheckpointError, ReleaseError
from meloformer.file_sums import sha256_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import model_fingerprint, save_model
from meloformer.release.bridge_archive import TrainedParts, write_bridge_archives
from meloformer.release.deploy_page import commands_of
from meloformer.release.offline import try_offline
from meloformer.release.packages import ALONE
from meloformer.release.source import (
    Commit,
    check_sums,
    unpack,
    write_archive,
    write_source_archive,
    write_sums,
)
from meloformer.tokens.vocabulary import fingerprint
from tests.bridge.text_encoders import write_qwen3
from tests.layouts import tiny_config
from tests.recipe_flags import help_of
from tests.test_readme import RECIPES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def archives(
    commit: Commit, bridge_run: Path, base_folder: Path, encoder_folder: Path, tmp_path: Path
) -> list[Path]:
    source, wheel = tmp_path / "source.tar.gz", tmp_path / "meloformer-1.2.3-py3-none-any.whl"
    write_source_archive(commit, source, top="MeloFormer-1.2.3")
    wheel.write_bytes(b"a wheel")
    parts = TrainedParts.find(bridge_run, base_folder, text_encoder=str(encoder_folder))
    for name in ("aside", "output"):
        (tmp_path / name).mkdir()
    return write_bridge_archives(
        commit, parts, wheel, source, tmp_path / "output", tmp_path / "aside"
    )


def test_the_full_archive_holds_what_was_trained_and_the_page_says_its_sums(
    archives, bridge_run, base_folder, encoder_folder, tmp_path
) -> None:
    code, full = archives
    assert (code.name, full.name) == (
        "diffusion_bridge_code.tar.gz",
        "diffusion_bridge_full.tar.gz",
    )
    (tmp_path / "empty").mkdir()
    folder = unpack(full, tmp_path / "empty")
    check_sums(folder)
    page = (folder / "DEPLOY.md").read_text()

    # As they load, not as they were copied.
    bridge = load_bridge(folder / "bridge")
    bridge.check_base(model_fingerprint(folder / "base"))
    settings = EncoderSettings.of_folder(folder / "text_encoder")
    bridge.check_encoder(folder_fingerprint(folder / "text_encoder", settings))
    assert bridge.heads is not None
    assert model_fingerprint(folder / "bridge") == model_fingerprint(bridge_run / "model")
    assert (folder / "code" / "constraints.txt").read_text() == "torch==2.13.0\n"
    for name in ("base/model.safetensors", "bridge/statistics.safetensors", "constraints.txt"):
        assert f"| {name} | `{sha256_of(folder / name)}` |" in page
    assert str(tmp_path) not in page.replace(str(encoder_folder), ""), "no place of this machine"

    lean = unpack(code, tmp_path / "empty")
    check_sums(lean)
    assert (
        not (lean / "base").exists()
        and "The weights are not here" in (lean / "DEPLOY.md").read_text()
    )


def test_every_command_of_the_page_exists_with_its_flags(archives, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    for archive in archives:
        page = (unpack(archive, tmp_path / "empty") / "DEPLOY.md").read_text()
        commands = [words for words in commands_of(page) if words[0].endswith("meloformer")]
        assert len(commands) == 5
        for words in commands:
            names = words[1:3] if words[1] == "tools" else words[1:2]
            recipe = "/".join(("launch", *names)) + ".py"
            assert recipe in RECIPES
            flags = [word for word in words if word.startswith("--")]
            assert [flag for flag in flags if flag not in help_of(recipe)] == []


def test_parts_that_were_not_trained_together_are_refused(
    bridge_run, base_folder, encoder_folder, tmp_path
) -> None:
    model = MuseFormer(tiny_config(num_layers=1))
    save_model(tmp_path / "other", model.config, model.state_dict(), {"tokenizer": fingerprint()})
    with pytest.raises(CheckpointError, match="found a bridge to the model"):
        TrainedParts.find(bridge_run, tmp_path / "other", text_encoder=str(encoder_folder))
    other = write_qwen3(tmp_path / "encoder", seed=1)
    with pytest.raises(CheckpointError, match="found a bridge from the encoder"):
        TrainedParts.find(bridge_run, base_folder, text_encoder=str(other))


# Stands where `meloformer` would: what it does with the network is the question.
PROGRAM = """#!{python}
import contextlib, pathlib, shutil, socket, sys
{reach}
shutil.copy({midi!r}, sys.argv[sys.argv.index("--output") + 1])
"""
REACH = """
with contextlib.suppress(OSError):
    socket.create_connection(("192.0.2.1", 80), timeout=1)
"""


@pytest.fixture
def trial(tmp_path):
    """Of an archive whose page has one command, with a program that does so much."""

    def trial_(reach: str, name: str = "out.mid") -> list[str]:
        from meloformer.release.smoke import write_pieces

        write_pieces(tmp_path / "midi")
        folder = tmp_path / "given"
        folder.mkdir()
        (folder / "DEPLOY.md").write_text(
            f"```sh\n.venv/bin/meloformer generate --output {name}\n```\n"
        )
        write_sums(folder)
        write_archive(folder, tmp_path / "given.tar.gz", 0)
        programs = tmp_path / "bin"
        programs.mkdir()
        text = PROGRAM.format(python=sys.executable, reach=reach, midi=str(tmp_path / "midi/0.mid"))
        (programs / "meloformer").write_text(text)
        (programs / "meloformer").chmod(0o755)
        return list(try_offline(tmp_path / "given.tar.gz", programs, tmp_path / "trial"))

    return trial_


def test_a_command_that_works_without_the_network_passes(trial) -> None:
    files, piece = trial("")
    assert "1 files, all as summed up" in files
    assert piece.startswith("generate: ") and piece.endswith(" notes without a network")


def test_a_command_that_asks_for_the_network_fails_even_if_it_bears_the_refusal(trial) -> None:
    with pytest.raises(ReleaseError, match=r"reach for the network: socket\..*192\.0\.2\.1"):
        trial(REACH)


def test_a_command_that_fails_is_told_with_what_it_said(trial) -> None:
    with pytest.raises(ReleaseError, match=r"generate .* ended with status 1: no such model"):
        trial("sys.exit('no such model')")


@pytest.mark.slow
@pytest.mark.parametrize("is_full", [True, False])
def test_each_archive_writes_music_from_a_text_in_an_empty_folder(
    archives, is_full, tmp_path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    words = f'#!/bin/sh\nexec "{sys.executable}" -m meloformer "$@"\n'
    (programs / "meloformer").write_text(words)
    (programs / "meloformer").chmod(0o755)
    code, full = archives
    variables = {**ALONE, "PYTHONPATH": str(ROOT)}
    other = {} if is_full else {"weights_from": full}
    archive = full if is_full else code
    found = list(try_offline(archive, programs, tmp_path / "trial", variables, **other))
    assert [line.split(":")[0] for line in found[1:]] == ["generate", "inject_museformer"]
