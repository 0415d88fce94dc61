"""Two runs of one seed are equal to the last bit; of runs that are not, the first step is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from meloformer.command_line import parse_flags
from meloformer.errors import CheckpointError, ConfigError
from meloformer.model.weights import WEIGHTS_NAME
from meloformer.training.checkpoint import MODEL_NAME, STATE_NAME, step_folder
from meloformer.training.compare_runs import compare_runs, read_steps
from meloformer.training.config import TrainConfig
from meloformer.training.metrics import METRICS_NAME, VALIDATION_NAME
from meloformer.training.run_folder import RUN_NAME

ROOT = Path(__file__).resolve().parents[2]


def train(recipe: ModuleType, shards: Path, output: Path, *more: str) -> Path:
    flags = (
        f"--data {shards} --config {ROOT}/ds_configs/zero2.json --model_size tiny "
        "--max_seq_len 256 --batch_size 1 --gradient_accumulation_steps 2 --num_workers 0 "
        "--warmup_steps 2 --save_every 2 --validate_every 2 --validation_rows 1 --device cpu "
        "--samples 0 "
        f"--max_steps 4 --output {output}"
    )
    recipe.main(parse_flags(TrainConfig, [*flags.split(), *more]))
    return output


@pytest.fixture(scope="module")
def runs(
    recipe: ModuleType, chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The same run, twice."""
    folder = tmp_path_factory.mktemp("runs")
    return tuple(train(recipe, chorale_shards, folder / name) for name in ("a", "b"))  # type: ignore[return-value]


@pytest.fixture
def other(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the second run, to be changed."""
    return Path(shutil.copytree(runs[1], tmp_path / "other"))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    """Change each line of a file, or its only object."""
    if path.suffix == ".json":
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data, indent=2))
        return
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_two_runs_of_one_seed_are_equal_to_the_last_bit(runs: tuple[Path, Path]) -> None:
    found = compare_runs(*runs)
    assert not found.parts and found.common_steps == 4
    assert (found.parting, found.largest, found.validation) == (None, None, None)
    assert found.settings == found.facts == ()
    assert (found.checkpoint, found.weights_are_equal) == (4, True)
    assert found.rows.startswith("the same")


def test_another_seed_parts_at_the_first_step_over_other_rows(
    runs: tuple[Path, Path], recipe: ModuleType, chorale_shards: Path, tmp_path: Path
) -> None:
    more = ("--seed", "7", "--max_steps", "2")
    found = compare_runs(runs[0], train(recipe, chorale_shards, tmp_path / "c", *more))
    assert found.parts and found.parting is not None and found.parting.step == 1
    assert {setting.name for setting in found.settings} == {"seed", "max_steps"}
    assert "seed 0 / 7" in found.rows
    assert found.checkpoint is None
    assert found.validation is not None and found.validation.step == 2


@pytest.mark.parametrize("name", ["loss", "tokens", "lr", "grad_norm"])
def test_the_first_step_that_differs_in_any_result_is_named_with_the_gap(
    name: str, runs: tuple[Path, Path], other: Path
) -> None:
    def change(line: dict) -> None:
        if line["step"] >= 3:
            line[name] += 1 if name == "tokens" else 1e-9 * line["step"]

    rewrite(other / METRICS_NAME, change)
    found = compare_runs(runs[0], other)
    assert found.parts and found.parting is not None and found.parting.step == 3
    (result,) = found.parting.results
    assert result.name == name and result.size == pytest.approx(1 if name == "tokens" else 3e-9)
    assert found.checkpoint == 2 and found.weights_are_equal
    assert (found.largest is not None) == (name == "loss")
    if name == "loss":
        assert found.largest is not None and found.largest.step == 4
    if name == "tokens":
        assert found.rows.startswith("OTHER ROWS from step 3")
    assert any("part at step 3" in line for line in found.lines())


def test_a_tolerance_passes_over_small_gaps_but_never_over_tokens(
    runs: tuple[Path, Path], other: Path
) -> None:
    rewrite(other / METRICS_NAME, lambda line: line.update(loss=line["loss"] + 1e-5))
    assert not compare_runs(runs[0], other, tolerance=1e-4).parts
    assert compare_runs(runs[0], other, tolerance=1e-7).parts
    rewrite(other / METRICS_NAME, lambda line: line.update(tokens=line["tokens"] + 1))
    assert compare_runs(runs[0], other, tolerance=0.5).parts


def test_a_loss_that_is_not_finite_in_one_run_parts_and_in_both_does_not(
    runs: tuple[Path, Path], other: Path, tmp_path: Path
) -> None:
    rewrite(other / METRICS_NAME, lambda line: line.update(loss=None, grad_norm=None))
    found = compare_runs(runs[0], other, tolerance=0.5)
    assert found.parting is not None and found.parting.step == 1 and found.lines()
    again = Path(shutil.copytree(other, tmp_path / "again"))
    assert not compare_runs(other, again).parts


def test_shards_that_an_older_run_names_in_one_line_are_no_other_shards(
    runs: tuple[Path, Path], other: Path, tmp_path: Path
) -> None:
    newer = Path(shutil.copytree(runs[0], tmp_path / "newer"))
    rewrite(other / RUN_NAME, lambda run: run["settings"].update(data="a b"))
    rewrite(newer / RUN_NAME, lambda run: run["settings"].update(data=["a", "b"]))
    assert "data" not in {setting.name for setting in compare_runs(newer, other).settings}
    found = compare_runs(runs[0], newer).settings
    assert "a b" in next(str(setting) for setting in found if setting.name == "data")


def test_versions_ranks_and_data_that_differ_are_told(runs: tuple[Path, Path], other: Path) -> None:
    def change(run: dict) -> None:
        run["starts"][0]["versions"]["torch"] = "2.99.0"
        run["starts"][0]["world_size"] = 2
        run["manifest_sha256"] = "f" * 64

    rewrite(other / RUN_NAME, change)
    found = compare_runs(runs[0], other)
    assert {fact.name for fact in found.facts} == {"data manifest", "versions.torch", "world_size"}
    assert found.rows.startswith("other rows: manifest") and not found.parts


def test_data_positions_that_differ_in_a_checkpoint_are_told(
    runs: tuple[Path, Path], other: Path
) -> None:
    state = step_folder(other, 4) / STATE_NAME
    rewrite(state, lambda state: state["cursor"].update(somewhere="else"))
    assert "positions of the checkpoints of step 4 differ" in compare_runs(runs[0], other).rows


def test_weights_that_differ_in_a_common_checkpoint_are_told(
    runs: tuple[Path, Path], other: Path
) -> None:
    step_2 = step_folder(other, 2) / MODEL_NAME
    shutil.copy(step_2 / WEIGHTS_NAME, step_folder(other, 4) / MODEL_NAME)
    found = compare_runs(runs[0], other)
    assert found.checkpoint == 4 and not found.weights_are_equal
    assert "last checkpoint in common: step 4, ITS WEIGHTS DIFFER" in found.lines()


def test_validations_part_by_themselves(runs: tuple[Path, Path], other: Path) -> None:
    rewrite(other / VALIDATION_NAME, lambda line: line["all"].update(total=line["step"]))
    found = compare_runs(runs[0], other)
    assert found.parting is None and found.parts
    assert found.validation is not None and found.validation.step == 2


def test_a_run_that_has_come_less_far_is_compared_as_far_as_it_has_come(
    runs: tuple[Path, Path], other: Path
) -> None:
    path = other / METRICS_NAME
    whole = path.read_text()
    path.write_text(whole[: -len(whole.splitlines()[-1]) // 2 - 1])  # killed in the last line
    found = compare_runs(runs[0], other)
    assert not found.parts and found.common_steps == 3
    assert "A alone has 1 more steps" in found.lines()


def test_lines_that_are_about_a_step_but_no_step_are_none(other: Path) -> None:
    with (other / METRICS_NAME).open("a") as file:
        file.write(json.dumps({"step": 9, "event": "spike"}) + "\n")
        file.write(json.dumps({"step": 2, "event": "spike"}) + "\n")
    assert list(read_steps(other)) == [1, 2, 3, 4]


def test_what_is_no_run_is_refused(runs: tuple[Path, Path], other: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"absent: found no run\.json; allowed: the folder of a run"
    ):
        compare_runs(runs[0], tmp_path / "absent")
    text = (other / METRICS_NAME).read_text()
    (other / METRICS_NAME).write_text("no JSON\n" + text)
    with pytest.raises(CheckpointError, match="line 1 cannot be read"):
        compare_runs(runs[0], other)
    (other / METRICS_NAME).write_text("")
    with pytest.raises(ConfigError, match=r"no step in .*; allowed: two runs that have a step"):
        compare_runs(runs[0], other)
