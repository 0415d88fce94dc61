"""launch/tools/audit.py on a really trained run, sound and with each fault planted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from meloformer.benchmarks.audit import PLANTED, AuditConfig
from meloformer.command_line import parse_flags, run_recipe
from meloformer.training.config import TrainConfig
from tests.launch.recipes import LAUNCH, load_recipe

recipe = load_recipe("tools/audit.py")

NUM_STEPS, SAVE_EVERY = 12, 4
# The chorales of the tests lie beside no licence file.
LICENCE = ("--licence", "default=public domain")
FAST = ("--skip", "resume", "ranks", *LICENCE)
Audit = Callable[..., tuple[object, str, str]]


@pytest.fixture(scope="module")
def train(chorale_shards: Path) -> Callable[..., Path]:
    """Trains a few steps, with checkpoints."""

    def train_(output: Path, *more: object) -> Path:
        flags = (
            f"--data {chorale_shards} --output {output} --model_size tiny --max_seq_len 256 "
            "--batch_size 2 --gradient_accumulation_steps 1 --num_workers 0 --learning_rate 3e-3 "
            f"--warmup_steps 2 --max_steps {NUM_STEPS} --save_every {SAVE_EVERY} --keep_last 0 "
            "--validation_rows 2 --samples 0 --device cpu"
        )
        words = [*flags.split(), *map(str, more)]
        with mock.patch.dict(os.environ):
            load_recipe("train.py").main(parse_flags(TrainConfig, words))
        return output

    return train_


@pytest.fixture(scope="module")
def trained(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    return train(tmp_path_factory.mktemp("runs") / "trained")


@pytest.fixture
def audit(trained: Path, chorale_shards: Path, capsys: pytest.CaptureFixture[str]) -> Audit:
    def audit_(*flags: object, run: Path = trained) -> tuple[object, str, str]:
        capsys.readouterr()
        given = ["--run", run, "--data", chorale_shards, "--device", "cpu", "--num_windows", 2]
        given += ["--num_pieces", 2, "--bars", 2, *flags]
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe.main, AuditConfig, [str(word) for word in given])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return audit_


def rows(path: Path) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in json.loads(path.read_text())["rows"]:
        found.setdefault(row["check"], []).append(row)
    return found


def test_a_sound_run_passes_with_numbers_and_gets_one_new_file(audit: Audit, trained: Path) -> None:
    before = {path for path in trained.rglob("*") if path.is_file()}
    code, said, complaint = audit(*FAST)
    assert code == 0, said + complaint
    path = trained / "audit.json"
    assert {path for path in trained.rglob("*") if path.is_file()} - before == {path}
    found = rows(path)
    path.unlink()
    assert list(found) == ["split", "licences", "future", "neighbour", "copies", "untouched"]
    assert all(row["is_ok"] for of_check in found.values() for row in of_check)
    assert found["split"][0]["figures"]["num_pieces"] == 40
    for check in ("future", "neighbour"):
        figures = found[check][0]["figures"]
        assert figures["largest"] < 1e-9 and figures["num_positions"] > 500
        assert figures["num_felt"] == figures["num_changes"] > 8
    verbatim, transposed = (row["figures"] for row in found["copies"])
    assert verbatim["bars"] > 0 and transposed["share"] >= verbatim["share"]
    assert verbatim["held_out_bars"] > 20 and verbatim["training_pieces"] == 31
    assert "as --licence says" in said and "FAIL" not in said


@pytest.mark.parametrize("plant", PLANTED)
def test_each_plant_fails_all_its_checks_and_writes_into_no_run(
    plant: str, audit: Audit, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "planted.json"
    code, said, _ = audit("--plant", plant, "--json", path)
    assert code == 1 and "FAIL" in said
    found = rows(path)
    assert set(found) == {*PLANTED[plant], "untouched"}
    for check in PLANTED[plant]:
        assert not any(row["is_ok"] for row in found[check]), found[check]
    assert found["untouched"][0]["is_ok"] and not (trained / "audit.json").exists()


def test_data_without_a_licence_fails(audit: Audit, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    code, said, _ = audit("--only", "licences", "--json", path)
    assert code == 1 and rows(path)["licences"][0]["figures"]["absent"] == ["default"]
    assert "--licence" in said


def test_other_shards_and_no_run_are_refused_in_one_line(
    audit: Audit, trained: Path, chorale_shards: Path, tmp_path: Path
) -> None:
    for flags, words in (
        (("--run", tmp_path), "found no run.json"),
        (("--data", chorale_shards, chorale_shards), "was trained on"),
        (("--data", tmp_path), "no shard folder"),
        (("--only", "split", "--skip", "split"), "found no check left"),
        (("--licence", "BSD"), "name=licence"),
        (("--json", tmp_path / "absent" / "audit.json"), "does not exist"),
        (("--num_steps", 1), "allowed: 2 or more"),
    ):
        code, _, complaint = audit(*flags)
        assert code == 2 and complaint.count("\n") == 1 and words in complaint, complaint
    without = tmp_path / "without checkpoints"
    shutil.copytree(trained, without, ignore=shutil.ignore_patterns("checkpoints"))
    code, _, complaint = audit(run=without)
    assert code == 2 and "found no checkpoint" in complaint
    assert audit("--only", "split", run=without)[0] == 0


@pytest.mark.slow
@pytest.mark.distributed
def test_a_resume_repeats_the_losses_and_two_ranks_have_those_of_one(
    audit: Audit, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "audit.json"
    code, said, complaint = audit("--only", "resume", "ranks", "--num_steps", 5, "--json", path)
    assert code == 0, said + complaint
    found = {check: row["figures"] for check, (row,) in rows(path).items()}
    assert found["resume"]["largest"] == found["resume"]["limit"] == 0
    assert found["resume"]["num_steps"] == found["ranks"]["num_steps"] == 5
    assert found["ranks"]["largest"] <= found["ranks"]["limit"] == 1e-4


@pytest.mark.slow
def test_losses_that_a_resume_does_not_repeat_fail(
    audit: Audit, trained: Path, tmp_path: Path
) -> None:
    changed, path = tmp_path / "changed", tmp_path / "audit.json"
    shutil.copytree(trained, changed)
    lines = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    lines[NUM_STEPS - SAVE_EVERY]["loss"] += 1e-6
    (changed / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    flags = ("--only", "resume", "--num_steps", SAVE_EVERY, "--json", path)
    code, _, _ = audit(*flags, run=changed)
    (row,) = rows(path)["resume"]
    assert code == 1 and row["figures"]["step"] == NUM_STEPS - SAVE_EVERY + 1
    assert row["figures"]["largest"] == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.slow
def test_without_steps_enough_a_stretch_is_trained_with_and_without_a_save_in_the_middle(
    audit: Audit, trained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "audit.json"
    code, said, complaint = audit("--only", "resume", "--num_steps", NUM_STEPS + 1, "--json", path)
    assert code == 0, said + complaint
    (row,) = rows(path)["resume"]
    assert "a save and another start" in row["what"]
    assert row["figures"]["largest"] == row["figures"]["limit"] == 0
    assert row["figures"]["num_steps"] == NUM_STEPS + 1


@pytest.mark.slow
def test_a_run_of_a_gpu_in_bfloat16_is_audited_on_a_cpu_within_a_stated_limit(
    audit: Audit, train: Callable[..., Path], tmp_path: Path
) -> None:
    partitioning, path = tmp_path / "zero2.json", tmp_path / "audit.json"
    settings = json.loads((LAUNCH.parent / "ds_configs/zero2.json").read_text())
    partitioning.write_text(json.dumps(settings | {"bf16": {"enabled": True}}))
    run = train(tmp_path / "run", "--config", partitioning)
    # What the same files say on a GPU and on a CPU: bfloat16 there, float32 here.
    partitioning.write_text(json.dumps(settings | {"bf16": {"enabled": "auto"}}))
    facts = json.loads((run / "run.json").read_text())
    facts["starts"][0] |= {"device": "cuda", "world_size": 4096}
    (run / "run.json").write_text(json.dumps(facts))
    code, said, complaint = audit("--only", "resume", "--num_steps", 5, "--json", path, run=run)
    assert code == 0, said + complaint
    (row,) = rows(path)["resume"]
    assert 0 < row["figures"]["largest"] < row["figures"]["limit"] < 0.05
    assert "bfloat16" in row["allowed"] and "on another device" in said
