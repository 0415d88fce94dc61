"""Each check of a run, on the files of a short one and on copies in which one thing is wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from meloformer.command_line import parse_flags, run_recipe
from meloformer.training.config import TrainConfig
from meloformer.training.doing import DOING_NAME
from meloformer.training.health import check_run, trend
from meloformer.training.metrics import BYTES_PER_GIB, LOG_NAME, METRICS_NAME
from meloformer.training.run_reader import LineReader, RunReader
from meloformer.training.watch import braille, picture
from tests.launch.recipes import load_recipe

NUM_STEPS = 24
CHECKS = [
    "loss",
    "memory",
    "recompiles",
    "skipped steps",
    "saves",
    "utilisation",
    "data wait",
    "slowest rank",
    "ETA",
]
Line = dict[str, Any]


@pytest.fixture(scope="module")
def real(
    recipe: ModuleType, chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a finished run."""
    output = tmp_path_factory.mktemp("runs") / "real"
    flags = (
        f"--data {chorale_shards} --output {output} --model_size tiny --max_seq_len 256 "
        "--batch_size 1 --gradient_accumulation_steps 1 --num_workers 0 --save_every 0 "
        f"--validation_rows 1 --samples 0 --learning_rate 2e-3 --warmup_steps 2 --device cpu "
        f"--max_steps {NUM_STEPS}"
    )
    recipe.main(parse_flags(TrainConfig, flags.split()))
    return output


def copied(
    real: Path,
    folder: Path,
    change: Callable[[int, Line], None] = lambda index, line: None,
    **start: Any,
) -> Path:
    """The run half done on four GPUs that nothing is wrong with, but for one change."""
    shutil.copytree(real, folder)
    run = json.loads((folder / "run.json").read_text())
    run["num_steps"] = 2 * NUM_STEPS
    run["starts"][-1] |= {"world_size": 4, "num_graphs": 6} | start
    (folder / "run.json").write_text(json.dumps(run))
    path = folder / METRICS_NAME
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for index, line in enumerate(lines):
        line |= {"tokens_per_second": 1e5, "step_seconds": 1.0, "data_wait": 0.01, "graphs": 6}
        line |= {"memory": 40 * BYTES_PER_GIB, "memory_host": 4 * BYTES_PER_GIB}
        line |= {"gpu_utilisation": 0.97, "slowest_rank": index % 4}
        line |= {"rank_seconds_median": 0.5, "rank_seconds_max": 0.52}
        change(index, line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def check(folder: Path, *, seconds_later: float = 1.0) -> dict[str, tuple[bool, str]]:
    run = RunReader(folder)
    findings = check_run(run, run.written_at() + seconds_later)
    assert all(bool(finding.remedy) == (not finding.is_ok) for finding in findings)
    return {finding.name: (finding.is_ok, finding.found) for finding in findings}


def wrong(folder: Path, *, seconds_later: float = 1.0) -> list[str]:
    return [name for name, (ok, _) in check(folder, seconds_later=seconds_later).items() if not ok]


def test_a_run_has_a_row_for_every_check_and_a_healthy_one_passes_all(
    real: Path, tmp_path: Path
) -> None:
    found = check(copied(real, tmp_path / "healthy"))
    assert list(found) == CHECKS
    assert [name for name, (ok, _) in found.items() if not ok] == []
    assert found["recompiles"][1] == "6 graphs of 6 declared"
    assert found["utilisation"][1].startswith("GPU busy 97%")


def test_a_finished_run_on_a_cpu_says_what_it_has_no_figure_for(real: Path) -> None:
    found = check(real, seconds_later=1e6)
    assert found["ETA"] == (True, f"all {NUM_STEPS} steps are done")
    assert found["recompiles"] == (True, "nothing is compiled on this device")
    assert found["utilisation"][1].startswith("no figure")
    assert "falling" in found["loss"][1] or "no trend" in found["loss"][1]


def rising_loss(index: int, line: Line) -> None:
    line["loss"] = 3 + 0.1 * index


def growing_device(index: int, line: Line) -> None:
    line["memory"] += index * BYTES_PER_GIB // 4


def growing_host(index: int, line: Line) -> None:
    line["memory_host"] += index * BYTES_PER_GIB // 8


def skipping(index: int, line: Line) -> None:
    line["skipped"] = index // 4


def unsaved(index: int, line: Line) -> None:
    line["failed_saves"] = index // 20  # the first in the last half


def idle(index: int, line: Line) -> None:
    line["gpu_utilisation"] = 0.4


def waiting(index: int, line: Line) -> None:
    line["data_wait"] = 0.2


def slow_rank(index: int, line: Line) -> None:
    line |= {"slowest_rank": 2, "rank_seconds_max": 0.9}


def slower(index: int, line: Line) -> None:
    if index > NUM_STEPS - 4:
        line["tokens_per_second"] = 1e4


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss", rising_loss),
        ("memory", growing_device),
        ("memory", growing_host),
        ("skipped steps", skipping),
        ("saves", unsaved),
        ("utilisation", idle),
        ("data wait", waiting),
        ("slowest rank", slow_rank),
        ("ETA", slower),
    ],
)
def test_one_thing_that_is_wrong_fails_its_check_alone(
    name: str, change: Callable[[int, Line], None], real: Path, tmp_path: Path
) -> None:
    assert wrong(copied(real, tmp_path / "run", change)) == [name]


def test_one_graph_more_than_declared_fails(real: Path, tmp_path: Path) -> None:
    assert wrong(copied(real, tmp_path / "run", num_graphs=5)) == ["recompiles"]


def test_a_run_that_has_gone_silent_fails_and_says_at_which_step(
    real: Path, tmp_path: Path
) -> None:
    folder = copied(real, tmp_path / "run")
    assert wrong(folder, seconds_later=100) == []
    found = check(folder, seconds_later=3600)
    assert found["ETA"] == (False, f"step {NUM_STEPS} of {2 * NUM_STEPS}, silent for 1:00:00")
    console = Console(width=100, record=True, file=None)
    run = RunReader(folder)
    console.print(picture(run, run.written_at() + 3600, 100))
    assert "silent for 1:00:00: stopped, or stuck" in console.export_text()
    with (folder / LOG_NAME).open("a") as log:
        log.write("2026-01-01 00:00:00,000 INFO saved step 24, stopped by SIGTERM\n")
    console.print(picture(run, run.written_at() + 3600, 100))
    said = console.export_text()
    assert said.count("saved step 24, stopped by SIGTERM") == 2, "as its state, and its last word"
    assert "silent" not in said


def test_a_run_that_says_what_it_does_is_not_silent_while_it_compiles_validates_or_saves(
    real: Path, tmp_path: Path
) -> None:
    folder = copied(real, tmp_path / "run")
    began = RunReader(folder).written_at()
    told = json.dumps({"moment": "the validation after step 24", "seconds": 600.0})

    def after(seconds: float) -> tuple[list[str], str]:
        (folder / DOING_NAME).write_text(told)
        os.utime(folder / DOING_NAME, (began + seconds - 5, began + seconds - 5))
        run = RunReader(folder)
        console = Console(width=120, record=True, file=None)
        console.print(picture(run, began + seconds, 120))
        return wrong(folder, seconds_later=seconds), console.export_text()

    failed, said = after(600)
    assert failed == [] and "the validation after step 24, for 0:10:05" in said
    failed, said = after(3600)
    assert failed == ["ETA"] and "silent for 1:00:00: stopped, or stuck" in said
    (folder / DOING_NAME).unlink()
    assert wrong(folder, seconds_later=600) == ["ETA"]


def test_a_loss_that_has_never_fallen_fails_and_a_level_one_late_in_a_run_does_not(
    real: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 400)

    def of(start: float, name: str) -> Path:
        folder = copied(real, tmp_path / name)
        line = json.loads((folder / METRICS_NAME).read_text().splitlines()[-1])
        losses = np.where(np.arange(400) < 100, np.linspace(start, 3, 400), 3.0) + noise
        lines = [line | {"step": i + 1, "loss": loss} for i, loss in enumerate(losses)]
        (folder / METRICS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    assert "loss" not in wrong(of(6.0, "learned"))
    assert "loss" in wrong(of(2.9, "never"))


def test_a_trend_is_found_under_noise_and_outliers_and_none_in_noise_alone() -> None:
    noise = np.random.default_rng(1).normal(0, 1, 1000)
    slope, deviations = trend(noise - 0.002 * np.arange(1000))
    assert slope == pytest.approx(-0.002, rel=0.25) and deviations < -3
    noise[::100] = 50
    assert abs(trend(noise)[1]) < 3


def test_lines_are_read_once_whole_and_again_when_the_file_was_written_anew(
    tmp_path: Path,
) -> None:
    path = tmp_path / METRICS_NAME
    reader = LineReader(path)
    assert reader.read_new() == ([], False), "not there yet"
    path.write_text('{"step": 1}\n{"step"')
    assert reader.read_new() == ([{"step": 1}], True)
    with path.open("a") as file:
        file.write(': 2}\n{"step": 3}\n')
    assert reader.read_new() == ([{"step": 2}, {"step": 3}], False)
    assert reader.read_new() == ([], False)
    # What a resumed run does: forget the steps that it repeats. It may be longer than before.
    for end in ("", '{"step": 2, "again": 1}\n', '{"step": 2, "again": 2}\n{"step": 3}\n'):
        path.write_text('{"step": 1}\n' + end)
        lines, is_new = reader.read_new()
        assert is_new == (end != '{"step": 2, "again": 1}\n'), "a line more is no new file"
        assert [line["step"] for line in lines] == [1, 2, 3][not is_new : 1 + end.count("\n")]
    path.write_text("")
    assert reader.read_new() == ([], True)


def test_a_reader_follows_a_run_that_writes_and_skips_lines_that_are_no_steps(
    real: Path, tmp_path: Path
) -> None:
    folder = copied(real, tmp_path / "run")
    run = RunReader(folder)
    assert run.last_step == NUM_STEPS and not run.is_finished
    line = json.loads((folder / METRICS_NAME).read_text().splitlines()[-1])
    with (folder / METRICS_NAME).open("a") as file:
        file.write(json.dumps({"step": NUM_STEPS + 1, "event": "dropped"}) + "\n")
        file.write(json.dumps(line | {"step": 2 * NUM_STEPS, "loss": None}) + "\n")
    run.refresh()
    assert (run.num_read, run.is_finished) == (NUM_STEPS + 1, True)
    assert np.isnan(run.column("loss")[-1])


def test_a_run_whose_lines_lack_newer_figures_is_read_and_judged(
    real: Path, tmp_path: Path
) -> None:
    def forget(index: int, line: Line) -> None:
        for name in ("step_seconds", "failed_saves", "rank_seconds_max", "slowest_rank"):
            del line[name]

    run = RunReader(copied(real, tmp_path / "older", forget))
    assert run.last_step == NUM_STEPS
    assert all(finding.is_ok for finding in check_run(run, run.written_at()))
    console = Console(width=100, record=True, file=None)
    console.print(picture(run, run.written_at(), 100))
    assert f"step {NUM_STEPS} of {2 * NUM_STEPS}" in console.export_text()


def test_a_picture_shows_progress_curves_validation_and_the_slowest_rank(
    real: Path, tmp_path: Path
) -> None:
    run = RunReader(copied(real, tmp_path / "run", slow_rank))
    console = Console(width=110, record=True, file=None)
    console.print(picture(run, run.written_at() + 5, 110))
    said = console.export_text()
    for words in (
        f"step {NUM_STEPS} of {2 * NUM_STEPS} (50.0%)",
        "running, eta",
        "nats per note",
        "GPU busy",
        f"validation after step {NUM_STEPS}",
        "slowest rank: 2 with 0.9 s of its own against a median of 0.5 s",
        "most often rank 2 (100%",
        "last word: wrote",
    ):
        assert words in said, words
    assert max(map(len, said.splitlines())) == 110


def test_a_falling_line_of_dots_falls() -> None:
    top, bottom = braille(np.array([3.0, 2.0, 1.0, 0.0]), 2, 2, 0.0, 3.0)
    assert (top, bottom) == ("⠱⡀", " ⢣"), "from the highest dot to the lowest without a gap"
    assert braille(np.array([5.0, 5.0]), 1, 1, 5.0, 5.0) == ["⠤"], "a level line has its place too"


def test_the_recipe_exits_with_1_on_trouble_and_2_where_there_is_no_run(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = load_recipe("tools/watch.py")

    def status(*flags: str) -> int:
        with pytest.raises(SystemExit) as ended:
            run_recipe(watch.main, watch.WatchConfig, list(flags))
        return int(ended.value.code or 0)

    assert status("--run", str(copied(real, tmp_path / "healthy")), "--check") == 0
    capsys.readouterr()
    assert status("--run", str(copied(real, tmp_path / "idle", idle)), "--check") == 1
    said = capsys.readouterr().out
    assert all(name in said for name in CHECKS) and said.count("NOT OK") == 1
    assert status("--run", str(real), "--once") == 0
    assert "finished" in capsys.readouterr().out
    assert status("--run", str(tmp_path / "nothing")) == 2
    assert "found no run.json; allowed: the folder of a run" in capsys.readouterr().err
