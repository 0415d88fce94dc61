"""launch/tools/listen.py as `make listen` calls it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import save_model
from meloformer.tokens.vocabulary import fingerprint
from tests.layouts import tiny_config

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_piece_its_sound_and_its_picture_stand_there_and_both_times_are_said(tmp_path) -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=1))
    save_model(tmp_path / "m", model.config, model.state_dict(), {"tokenizer": fingerprint()})
    flags = ["--checkpoint", "m", "--bars", "1", "--setup_seconds", "77"]
    flags += ["--output", "out.midi"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch/tools/listen.py"), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = ["out.midi", "out.wav", "out.png"]
    assert all((tmp_path / file).stat().st_size for file in files)
    assert f"to hear and to see: {', '.join(files)}\n" in done.stdout
    assert "set-up, downloads included: 77 s\n" in done.stdout
    assert "the piece, its sound and its picture: " in done.stdout
    assert "`make page`" in done.stdout
