import json
from types import ModuleType

import pytest

from meloformer.command_line import run_recipe
from meloformer.training.cards import CARDS
from tests.benchmarks.test_gpu_findings import RIGHT, found
from tests.launch.recipes import load_recipe


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("tools/check_gpu.py")


@pytest.fixture
def run(recipe, monkeypatch, capsys):
    """Exit code, stdout and stderr of the recipe on a machine with these GPUs."""

    def run_(*flags: str, gpus=()):
        monkeypatch.setattr(recipe, "look_at_gpus", lambda with_flex: list(gpus))
        small = () if "--help" in flags else ("--max_seq_len", "1024")
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe.check_gpu, recipe.CheckGpuConfig, [*small, *flags])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run_


def test_without_a_gpu_the_cards_are_told_and_the_exit_code_is_0(run) -> None:
    code, said, complaint = run()
    assert (code, complaint) == (0, "")
    assert "no CUDA device: " in said.splitlines()[0]
    for card in CARDS:
        assert card.name in said
    assert said.count("modelled") == len(CARDS) + 1  # and once in the formula
    assert "hours = 529,000 pieces x 3 epochs" in said


def test_the_flags_of_a_row_reproduce_it(run) -> None:
    flags = (
        "--pieces 1000 --epochs 2 --tokens_per_piece 360 --model_size tiny --mfu 0.5 "
        "--price_per_hour 8.9 --currency CNY --card H800 --json"
    )
    code, said, _ = run(*flags.split())
    found = json.loads(said)
    (row,) = found["cards"]
    assert code == 0 and found["gpus"] == []
    assert row["card"] == "H800" and row["figures"] == "modelled"
    hours = 1000 * 2 * 360 / row["tokens_per_second"] / 3600
    assert row["hours"] == pytest.approx(hours)
    assert row["cost"] == pytest.approx(8.9 * hours)


def test_a_gpu_that_can_train_ends_in_0(run) -> None:
    code, said, complaint = run(gpus=[found()])
    assert (code, complaint) == (0, "")
    assert "RTX PRO 6000 Blackwell" in said and str(RIGHT)[:5] in said


def test_a_gpu_that_torch_has_no_code_for_ends_in_1_with_the_remedy_on_stderr(run) -> None:
    code, said, complaint = run(gpus=[found(), found(arch_list=("sm_90",), trial=None)])
    assert code == 1
    assert len(complaint.splitlines()) == 1
    assert "pip install torch==2.13.0 --index-url https://download.pytorch.org" in complaint
    assert "H800" in said  # the cards are told all the same


def test_json_is_one_object_that_holds_the_problems_too(run) -> None:
    code, said, _ = run("--json", gpus=[found(arch_list=("sm_90",), trial=None)])
    (gpu,) = json.loads(said)["gpus"]
    assert code == 1 and len(gpu["problems"]) == 1


@pytest.mark.parametrize(
    "flags",
    [
        *("--mfu 0", "--mfu 1.2", "--price_per_hour -1", "--price_per_hour nan"),
        *("--card H900", "--pieces 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(run, flags) -> None:
    code, said, complaint = run(*flags.split())
    assert (code, said) == (2, "")
    assert len(complaint.splitlines()) == 1 and "allowed" in complaint
