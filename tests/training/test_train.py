"""launch/train.py in this process: what a run leaves behind, and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from meloformer.command_line import parse_flags, run_recipe
from meloformer.errors import BatchError, TrainingError
from meloformer.model.weights import find_model_folder, load_model, load_weights, save_model
from meloformer.training.checkpoint import check_files, step_folders
from meloformer.training.config import TrainConfig
from meloformer.training.loss import share_of_step
from meloformer.training.metrics import LOG_NAME, METRICS_NAME, VALIDATION_NAME
from meloformer.training.schedule import learning_rate
from meloformer.training.step import Progress

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 6


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(
    recipe: ModuleType, base_flags: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a run of a few steps, never interrupted."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    recipe.main(parse_flags(TrainConfig, [*base_flags, "--output", str(output)]))
    return output


def test_a_run_folder_holds_what_the_contract_lists(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} >= {
        "run.json",
        "train.log",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "model",
    }
    assert [path.name for path in step_folders(finished)] == ["step-3", "step-6"]
    for folder in step_folders(finished):
        check_files(folder)
    assert list((finished / "tensorboard").glob("events.*"))


def test_metrics_hold_one_object_per_step_with_every_field(finished: Path) -> None:
    written = lines(finished / METRICS_NAME)
    assert [line["step"] for line in written] == list(range(1, NUM_STEPS + 1))
    fields = (
        "step epoch phase loss tokens lr grad_norm tokens_per_second mfu padding data_wait graphs "
        "memory memory_host gpu_utilisation skipped failed_saves rollbacks eta_seconds "
        "dropped rolled_back nats_per_note loss_by_kind step_seconds rank_seconds_min "
        "rank_seconds_median rank_seconds_max slowest_rank"
    )
    for line in written:
        assert set(line) == set(fields.split())
        assert line["loss"] > 0 and line["grad_norm"] > 0 and line["tokens"] > 0
        assert 0 <= line["padding"] < 1 and 0 <= line["data_wait"] <= 1
        assert {"PITCH", "ONSET", "BAR", "DURATION"} <= line["loss_by_kind"].keys()
        kinds = line["loss_by_kind"].values()
        assert min(kinds) < line["loss"] < max(kinds) and line["nats_per_note"] > line["loss"]
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["step_seconds"])
        assert line["memory"] is line["gpu_utilisation"] is None, "there is no GPU"
        assert line["rank_seconds_max"] is line["slowest_rank"] is None, "there is one rank"
    assert "slowest" not in (finished / LOG_NAME).read_text()


def test_the_loss_falls(finished: Path) -> None:
    losses = [line["loss"] for line in lines(finished / METRICS_NAME)]
    assert losses[-1] < losses[0] - 0.3


def test_run_json_says_what_is_needed_to_repeat_the_run(finished: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    assert run["settings"]["schedule"]["learning_rate"] == 1e-3
    assert run["settings"]["phases"] == "off"
    assert run["global_batch"] == 4
    assert re.fullmatch("[0-9a-f]{64}", run["manifest_sha256"])
    (start,) = run["starts"]
    choice = start["attention_precision"]
    assert choice["why"] in run["notes"]
    assert choice["why"] in (finished / "train.log").read_text()
    assert start["world_size"] == 1
    assert start["versions"]["torch"] == torch.__version__


def test_the_trained_model_loads_without_the_trainer_and_equals_the_last_checkpoint(
    finished: Path,
) -> None:
    model = load_model(finished / "model")
    last = load_model(finished / "checkpoints" / f"step-{NUM_STEPS}" / "model")
    for (name, weight), other in zip(model.named_parameters(), last.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_validation_tells_nats_per_token_per_note_and_per_kind_with_and_without_attributes(
    finished: Path,
) -> None:
    (line,) = lines(finished / VALIDATION_NAME)
    assert line["step"] == NUM_STEPS
    for told in ("all", "none"):
        nats = line[told]
        assert nats["per_note"] > nats["per_token"] > 0
        assert {"PITCH", "ONSET", "BAR"} <= nats["per_kind"].keys()
    assert "KEY" in line["all"]["per_kind"]
    assert "KEY" not in line["none"]["per_kind"]
    assert line["all"]["num_notes"] == line["none"]["num_notes"]


class DiedError(Exception):
    """Stands for the end of a process right after a checkpoint."""


def die_after_first_checkpoint(recipe: ModuleType, flags: list[str]) -> None:
    session = recipe.Session(recipe.prepare(parse_flags(TrainConfig, flags)))
    save = session.save

    def save_and_die(progress: Progress) -> None:
        save(progress)
        raise DiedError

    session.save = save_and_die
    with pytest.raises(DiedError):
        recipe.train(session)
    session.close()


@pytest.mark.parametrize(
    "more", [[], ["--phases", "on", "--collate", "pack", "--max_steps", "4", "--save_every", "2"]]
)
def test_a_resumed_run_repeats_losses_rates_and_weights_to_the_last_bit(
    more: list[str], finished: Path, recipe: ModuleType, base_flags: list[str], tmp_path: Path
) -> None:
    undisturbed, resumed = finished, tmp_path / "resumed"
    if more:
        undisturbed = tmp_path / "undisturbed"
        recipe.main(parse_flags(TrainConfig, [*base_flags, *more, "--output", str(undisturbed)]))
    flags = [*base_flags, *more, "--output", str(resumed)]
    die_after_first_checkpoint(recipe, flags)
    recipe.main(parse_flags(TrainConfig, [*flags, "--resume", "auto"]))
    log = (resumed / "train.log").read_text()
    assert re.search(r"goes on after step \d+, from .*/step-\d+$", log, re.MULTILINE)

    expected, found = (lines(run / METRICS_NAME) for run in (undisturbed, resumed))
    names = ("step", "epoch", "phase", "loss", "lr", "grad_norm", "tokens", "padding")
    assert [[line[n] for n in names] for line in found] == [
        [line[n] for n in names] for line in expected
    ]
    weights = [load_weights(run / "model") for run in (undisturbed, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_step_that_is_not_finite_is_dropped_counted_and_trained_past(
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def poisoned(*arguments: object) -> torch.Tensor:
        calls.append(None)
        loss = share_of_step(*arguments)  # type: ignore[arg-type]
        return loss * float("nan") if len(calls) == 3 else loss

    monkeypatch.setattr("meloformer.training.accumulation.share_of_step", poisoned)
    flags = [*base_flags, "--max_steps", "4", "--output", str(tmp_path / "run")]
    recipe.main(parse_flags(TrainConfig, flags))
    written = lines(tmp_path / "run" / METRICS_NAME)
    assert [line["skipped"] for line in written] == [0, 1, 1, 1]
    assert written[1]["loss"] is None and written[1]["grad_norm"] is None
    assert all(line["loss"] < 10 for line in written[2:])


def test_step_after_step_that_is_not_finite_ends_the_run(
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "meloformer.training.accumulation.share_of_step",
        lambda *arguments: share_of_step(*arguments) * float("inf"),
    )
    rows = ["--batch_size", "1", "--gradient_accumulation_steps", "1", "--save_every", "0"]
    flags = [*base_flags, *rows, "--max_steps", "30", "--output", str(tmp_path)]
    with pytest.raises(TrainingError, match=r"10 steps .* last is 10, and found no checkpoint"):
        recipe.main(parse_flags(TrainConfig, flags))


def test_weights_of_another_run_enter_through_init_from(
    finished: Path, recipe: ModuleType, base_flags: list[str], tmp_path: Path
) -> None:
    flags = [*base_flags, "--max_steps", "2", "--init_from", str(finished)]
    recipe.main(parse_flags(TrainConfig, [*flags, "--output", str(tmp_path / "run")]))
    first, _ = lines(tmp_path / "run" / METRICS_NAME)
    assert first["loss"] < lines(finished / METRICS_NAME)[3]["loss"]


def test_every_rate_is_the_schedules(finished: Path) -> None:
    schedule = TrainConfig().schedule
    schedule = type(schedule)(learning_rate=1e-3, warmup_steps=2)
    for line in lines(finished / METRICS_NAME):
        assert line["lr"] == learning_rate(line["step"], NUM_STEPS, schedule)


def refusal(recipe: ModuleType, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a start that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        run_recipe(recipe.main, TrainConfig, flags)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("error: "), message
    return message


def test_an_output_that_holds_a_run_is_refused_and_left_as_it_was(
    finished: Path,
    recipe: ModuleType,
    base_flags: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    message = refusal(recipe, [*base_flags, "--output", str(finished)], capsys)
    assert "holds a run" in message and "--resume auto" in message
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "absent"], ["absent", "make shard-data"]),
        (["--batch_size", "0"], ["--batch_size 0", "1 or more"]),
        (["--warmup_steps", "99"], ["--warmup_steps 99", "6 steps"]),
        (["--max_seq_len", "32"], ["32"]),
        (["--config", "absent.json"], ["absent.json", "zero2.json"]),
        (["--init_from", "absent"], ["absent"]),
        (["--resume", "absent"], ["absent", "allowed"]),
        (["--device", "cuda"], ["--device cuda", "cpu"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    flags: list[str],
    words: list[str],
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if flags == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has what the test wants absent: a CUDA device")
    output = tmp_path / "run"
    message = refusal(recipe, [*base_flags, "--output", str(output), *flags], capsys)
    assert all(word in message for word in words), message
    assert not output.exists()


def test_a_ds_config_that_contradicts_the_run_is_refused_with_both_numbers(
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = json.loads((ROOT / "ds_configs/zero2.json").read_text())
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(settings | {"gradient_accumulation_steps": 16}))
    output = tmp_path / "run"
    flags = [*base_flags, "--output", str(output), "--config", str(mine)]
    message = refusal(recipe, flags, capsys)
    assert "gradient_accumulation_steps = 16" in message and "the run says 2" in message
    assert not output.exists()


def test_a_partitioning_that_deepspeed_refuses_is_refused_in_one_line(
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": "x"}}))
    output = tmp_path / "run"
    flags = [*base_flags, "--output", str(output), "--config", str(mine)]
    assert "reduce_bucket_size = 'x'" in refusal(recipe, flags, capsys)
    assert not output.exists()


def test_a_run_goes_on_with_its_own_settings_only(
    finished: Path,
    recipe: ModuleType,
    base_flags: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*base_flags, "--output", str(finished), "--resume", "auto", "--max_steps", "9"]
    assert "--seed 7" in refusal(recipe, [*flags, "--seed", "7"], capsys)
    assert "6 steps done of 5" in refusal(recipe, [*flags, "--max_steps", "5"], capsys)


def test_a_run_killed_before_its_model_was_written_writes_it_on_resume(
    finished: Path, recipe: ModuleType, base_flags: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "model")
    flags = [*base_flags, "--output", str(output), "--resume", "auto"]
    recipe.main(parse_flags(TrainConfig, flags))
    found, expected = (load_weights(run / "model") for run in (output, finished))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (output / METRICS_NAME).read_text() == (finished / METRICS_NAME).read_text()

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    recipe.main(parse_flags(TrainConfig, flags))
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_run_that_goes_on_is_no_longer_known_by_the_model_it_had_finished(
    finished: Path,
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    assert find_model_folder(output) == output / "model"
    flags = [*base_flags, "--output", str(output), "--resume", "auto", "--max_steps", "9"]
    recipe.Session(recipe.prepare(parse_flags(TrainConfig, flags))).close()
    assert find_model_folder(output) == output / "checkpoints" / "step-6" / "model"


def test_weights_of_another_vocabulary_do_not_enter(
    finished: Path,
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = load_model(finished / "model")
    save_model(tmp_path / "other", model.config, model.state_dict(), {"tokenizer": "u" * 64})
    flags = [*base_flags, "--output", str(tmp_path / "run"), "--init_from", str(tmp_path / "other")]
    assert f"found weights for tokenizer {'u' * 12}, expected" in refusal(recipe, flags, capsys)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_the_plan_and_writes_nothing(
    recipe: ModuleType,
    base_flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "run"
    recipe.main(parse_flags(TrainConfig, [*base_flags, "--output", str(output), "--dry_run"]))
    said = capsys.readouterr().out
    for word in ("rows", "parameters", "tokens", "GiB", "ZeRO stage 2"):
        assert word in said
    assert not output.exists()


def test_a_row_too_short_for_the_longest_bar_is_refused_with_the_length_that_fits(
    recipe: ModuleType, base_flags: list[str], tmp_path: Path
) -> None:
    def refusal(length: int) -> str:
        flags = [*base_flags, "--max_seq_len", str(length), "--output", str(tmp_path / "run")]
        with pytest.raises(BatchError) as refused:
            recipe.main(parse_flags(TrainConfig, [*flags, "--dry_run"]))
        return str(refused.value)

    needed = re.search(r"--max_seq_len to at least (\d+)", refusal(40))
    assert needed
    flags = [*base_flags, "--max_seq_len", needed[1], "--output", str(tmp_path / "run")]
    recipe.main(parse_flags(TrainConfig, [*flags, "--dry_run"]))
    assert not (tmp_path / "run").exists()
