"""launch/bench/data.py refuses to make a rate of what is mostly start-up."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from meloformer.command_line import run_recipe
from meloformer.midi.default_corpus import default_corpus_paths, score_to_midi

RECIPE = Path(__file__).parents[2] / "launch/bench/data.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch_bench_data", RECIPE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where run_recipe looks for the text of --help
    spec.loader.exec_module(module)
    return module


def test_a_few_files_are_refused_with_the_number_that_would_do(
    recipe: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Start-up and work take as long as each other, by a clock that no busy machine moves.
    monkeypatch.setattr(recipe, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    (tmp_path / "a.mid").write_bytes(score_to_midi(next(iter(default_corpus_paths()))))
    figures = tmp_path / "figures.json"
    flags = ["--midi", str(tmp_path), "--num_workers", "1", "--json", str(figures)]
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.bench_data, recipe.BenchDataConfig, flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "found 1 files" in said and "about " in said and said.count("\n") == 1
    assert not figures.exists()


def test_a_rate_is_that_of_the_work_alone(recipe: ModuleType) -> None:
    rate = recipe.Rate(
        what="shard-data", num_workers=2, files=900, seconds=4.0, start_up_seconds=1.0, tokens=0
    )
    assert rate.files_per_second_and_core == 150
