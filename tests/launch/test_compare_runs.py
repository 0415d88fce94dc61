import json
from pathlib import Path

import pytest

from meloformer.command_line import run_recipe
from meloformer.training.run_folder import Run
from tests.launch.recipes import load_recipe

recipe = load_recipe("tools/compare_runs.py")


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two run folders without a checkpoint; the second has one other loss and another rate."""
    folders = []
    for name, second_loss in (("a", 5.5), ("b", 5.25)):
        settings = {"seed": 0, "output": name, "schedule": {"learning_rate": second_loss}}
        run = Run(
            run_id=name,
            settings=settings,
            global_batch=4,
            num_steps=2,
            manifest_sha256="0" * 64,
            starts=[{"step": 0, "world_size": 1, "versions": {"torch": "2.13.0"}}],
        )
        run.save(tmp_path / name)
        lines = [
            {"step": step, "epoch": 0, "loss": loss, "tokens": 8, "lr": 1e-3, "grad_norm": 1.0}
            for step, loss in ((1, 6.0), (2, second_loss))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
        folders.append(str(tmp_path / name))
    return folders


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def run_(*flags: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe.main, recipe.CompareRunsConfig, flags)
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run_


def test_runs_that_part_exit_with_1_and_name_step_gap_and_settings(run, runs: list[str]) -> None:
    code, said, complaint = run(*runs)
    assert (code, complaint) == (1, "")
    assert "the runs part at step 2" in said and "loss 5.5 / 5.25 (apart by 0.25)" in said
    assert "schedule.learning_rate" in said and "facts: the same" in said
    code, said, _ = run(*runs, "--json")
    found = json.loads(said)
    assert code == 1 and found["parts"] is True and found["parting"]["step"] == 2


def test_equal_runs_exit_with_0(run, runs: list[str]) -> None:
    code, said, complaint = run(runs[0], runs[0])
    assert (code, complaint) == (0, "")
    assert "2 common steps: loss, tokens, lr, grad_norm are equal to the last bit" in said
    assert run(*runs, "--tolerance", "0.1")[0] == 0


@pytest.mark.parametrize("more", [["--tolerance", "-1"], ["--tolerance", "nan"]])
def test_bad_input_exits_with_2_in_one_line(run, runs: list[str], more: list[str]) -> None:
    code, _, complaint = run(*runs, *more)
    assert code == 2 and complaint.count("\n") == 1 and "--tolerance" in complaint
    code, _, complaint = run(runs[0], runs[1] + "/absent")
    assert code == 2 and complaint.count("\n") == 1 and "found no run.json" in complaint
