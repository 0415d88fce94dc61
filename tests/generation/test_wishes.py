"""Pieces for programs: three lines of Python write what the recipe writes."""

import subprocess
import sys
from pathlib import Path

import pytest

import meloformer
from meloformer.errors import CheckpointError, ConfigError, GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.text import TextConfig
from meloformer.generation.wishes import split_wishes
from meloformer.midi.quantise import quantise
from meloformer.midi.read import read_midi
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from tests.hub.folders import a_model, a_piece, write_model
from tests.launch.recipes import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_model(folder / "model", a_model(num_layers=4, open_summary_rate=0.3))
    write_model(folder / "model_ema", a_model(num_layers=4, seed=1))
    return folder


def recipe_writes(run: Path, output: Path, **wishes: object) -> bytes:
    recipe = load_recipe("generate.py")
    writing = {"checkpoint": run, "output": output, "seed": 3, "device": "cpu"}
    controls = ControlConfig(bars=2, tempo=120.0, instruments=("0",))
    config = recipe.GenerateConfig(
        writing=recipe.WritingConfig(
            **writing, controls=controls, sampling=SamplingConfig(top_k=9)
        ),
        steering=TextConfig(**wishes),
    )
    recipe.main(config)
    return output.read_bytes()


def test_three_lines_write_the_file_that_the_recipe_writes(run, tmp_path) -> None:
    wishes = {"bars": 2, "tempo": 120, "instruments": [0], "top_k": 9, "seed": 3}
    piece = meloformer.generate(run, device="cpu", **wishes)
    piece.save(tmp_path / "a.mid")
    assert (tmp_path / "a.mid").read_bytes() == recipe_writes(run, tmp_path / "b.mid")
    assert (
        quantise(read_midi(tmp_path / "a.mid")).bar_tempo.tolist()
        == [ControlConfig(tempo=120.0).tempo_index] * 2
    )
    averaged = meloformer.generate(str(run), weights="ema", device="cpu", **wishes)
    assert averaged != piece


def test_pieces_lend_their_summaries_to_python_as_to_the_recipe(run, tmp_path) -> None:
    write_midi(to_piece(a_piece(2)), tmp_path / "lent.mid")
    lent = str(tmp_path / "lent.mid")
    wishes = {"bars": 2, "tempo": 120, "instruments": "0", "top_k": 9, "seed": 3}
    meloformer.generate(run, device="cpu", summaries_from=lent, **wishes).save(tmp_path / "a.mid")
    expected = recipe_writes(run, tmp_path / "b.mid", summaries_from=Path(lent))
    assert (tmp_path / "a.mid").read_bytes() == expected


def test_wishes_find_their_fields_and_unknown_ones_are_named() -> None:
    controls, sampling, steering = split_wishes(
        {"bars": 3, "temperature": 0.5, "alpha": 0.4, "mix": ["a.mid", "b.mid"], "at": "0:0"},
        ControlConfig,
        SamplingConfig,
        TextConfig,
    )
    assert (controls.bars, sampling.temperature, steering.injecting.alpha) == (3, 0.5, 0.4)
    assert steering.mix == (Path("a.mid"), Path("b.mid"))
    with pytest.raises(GenerationError, match=r"found colour, mood; allowed: .*tempo"):
        split_wishes({"colour": 1, "bars": 2, "mood": 2}, ControlConfig)
    with pytest.raises(GenerationError, match="cannot be read"):
        split_wishes({"bars": "many"}, ControlConfig)
    with pytest.raises(ConfigError, match="temperature"):
        split_wishes({"temperature": -1}, SamplingConfig)


def test_a_model_that_is_not_there_is_said_in_one_line(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        meloformer.generate(tmp_path / "absent", bars=2)


def test_importing_the_package_alone_loads_no_torch() -> None:
    code = "import sys, meloformer; print('torch' in sys.modules, callable(meloformer.generate))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "True"], done.stderr
