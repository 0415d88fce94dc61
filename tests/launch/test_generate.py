"""launch/generate.py as users call it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from miditoolkit import MidiFile

from meloformer.command_line import run_recipe
from meloformer.model import box
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.tokens.vocabulary import fingerprint
from tests.layouts import tiny_config

ROOT = Path(__file__).parents[2]


def run(*arguments: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "launch/generate.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=1))
    metadata = {"tokenizer": fingerprint()}
    save_model(folder / "model", model.config, model.state_dict(), metadata)
    return folder


def test_samples_are_written_as_midi_and_picture(checkpoint, tmp_path) -> None:
    done = run(
        "--checkpoint", checkpoint, "--output", tmp_path / "new" / "a.mid", "--bars", 2,
        "--num_samples", 2, "--tempo", 120, "--time_signature", "3/4", "--seed", 1,
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for number in range(2):
        midi = MidiFile(str(tmp_path / "new" / f"a-{number}.mid"))
        assert sum(len(track.notes) for track in midi.instruments) > 0
        assert (tmp_path / "new" / f"a-{number}.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_run_the_model_in_the_box_writes_midi_sound_and_picture(
    checkpoint, recipe, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(box, "BOX", checkpoint / "model")
    flags = ["--bars", "1", "--audio", "--voice", "plain", "--piano_roll"]
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.main, recipe.GenerateConfig, flags)
    assert ended.value.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mid", "out.png", "out.wav"]
    said = capsys.readouterr().out
    assert "no --checkpoint and no model in runs/: the model in the box" in said
    assert "out.mid and .png and .wav" in said
    assert "a band instead of what the model chooses: --instruments 29 30 33 drums\n" in said


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """launch/generate.py as a module; nothing of it runs on import."""
    spec = importlib.util.spec_from_file_location("launch_generate", ROOT / "launch/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where run_recipe looks for the text of --help
    spec.loader.exec_module(module)
    return module


def test_bad_wishes_end_in_one_line_and_code_2(
    checkpoint, recipe, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(box, "BOX", tmp_path / "empty")
    other = tmp_path / "other"
    model = MuseFormer(tiny_config(num_layers=1))
    save_model(other, model.config, model.state_dict(), {"tokenizer": "0" * 64})
    for arguments, message in (
        (["--checkpoint", checkpoint, "--key", "H major"], "--key"),
        (["--checkpoint", checkpoint, "--output", tmp_path], "--output"),
        (["--checkpoint", checkpoint, "--output", "out.wav"], "--output"),
        (["--checkpoint", tmp_path / "absent"], "no such folder"),
        (["--checkpoint", other], "another vocabulary"),
        ([], "no run with a model"),
        (["--checkpoint", checkpoint, "--fill_midi", "song.mid"], "--fill_midi alone"),
        (["--checkpoint", checkpoint, "--alpha", 0.4], "--alpha with nothing to inject"),
        (["--checkpoint", checkpoint, "--crossfade", 2], "--crossfade without a text"),
        (["--checkpoint", checkpoint, "--bars", 10**8], "--bars 100000000: allowed"),
        (
            ["--checkpoint", checkpoint, "--continue_midi", "song.mid", "--tempo", 90],
            "--tempo with",
        ),
        (["--checkpoint", checkpoint, "--continue_midi", "song.mid"], "--continue_midi song.mid"),
        (
            ["--checkpoint", checkpoint, "--continue_midi", "song.mid", "--endless"],
            "--endless",
        ),
        (["--checkpoint", checkpoint, "--voice", "plain"], "without --audio"),
        (["--checkpoint", checkpoint, "--audio", "--soundfont", other / "no.sf2"], "--soundfont"),
        (["--checkpoint", checkpoint, "--audio", "--soundfont", other / "config.json"], "bank"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe.main, recipe.GenerateConfig, list(map(str, arguments)))
        said = capsys.readouterr().err
        assert ended.value.code == 2, (arguments, said)
        assert message in said
        assert len(said.strip().splitlines()) == 1
        assert not list(tmp_path.glob("*.mid"))


@pytest.mark.parametrize(
    "flags",
    [
        "--continue_midi song.mid --output song.mid",
        "--fill_midi out.mid --fill_bars 1",  # the name that is written where none is given
        "--accompany_midi song-1.mid --instruments 33 --output song.mid --num_samples 2",
        "--summaries_from again.mid --output song.mid",
        "--mix out.mid song.mid --at 0:0,1:1 --output song.mid",
    ],
)
def test_a_file_that_is_read_is_never_written_over(
    recipe, tmp_path, monkeypatch, capsys, flags: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("song.mid", "song-1.mid", "out.mid"):
        Path(name).write_bytes(name.encode())
    Path("again.mid").symlink_to("song.mid")
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.main, recipe.GenerateConfig, flags.split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "would write over what is read; allowed: another name" in said
    assert len(said.splitlines()) == 1
    assert (
        all(path.read_bytes() for path in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 4
    )
