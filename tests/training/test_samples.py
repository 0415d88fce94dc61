"""Pieces written beside a training that does not notice."""

import json
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from miditoolkit import MidiFile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from meloformer.command_line import parse_flags
from meloformer.midi.sound import SAMPLE_RATE
from meloformer.model.weights import load_weights
from meloformer.training import samples
from meloformer.training.config import TrainConfig, resolve
from meloformer.training.metrics import METRICS_NAME

ROOT = Path(__file__).resolve().parents[2]


def train(recipe: ModuleType, shards: Path, output: Path, *more: str) -> Path:
    flags = (
        f"--data {shards} --output {output} --config {ROOT}/ds_configs/zero2.json "
        "--model_size tiny --max_seq_len 256 --batch_size 2 --gradient_accumulation_steps 1 "
        "--num_workers 0 --save_every 0 --validation_rows 2 --device cpu --max_steps 3 "
        "--validate_every 2"
    ).split()
    recipe.main(parse_flags(TrainConfig, [*flags, *more]))
    return output


def num_notes_of(path: Path) -> int:
    return sum(len(track.notes) for track in MidiFile(str(path)).instruments)


@pytest.fixture(scope="module")
def run(recipe: ModuleType, chorale_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that wrote two pieces after steps 2 and 3."""
    torch._dynamo.utils.counters["stats"]["unique_graphs"] = 0
    output = tmp_path_factory.mktemp("runs") / "with"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "MAX_SECONDS", math.inf)  # whole pieces on a machine of any speed
        return train(recipe, chorale_shards, output, "--samples", "2")


def test_each_validation_leaves_midi_and_pictures_that_can_be_read(run: Path) -> None:
    assert {path.name for path in (run / "samples").iterdir()} == {"step-2", "step-3"}
    log = (run / "train.log").read_text()
    for step in (2, 3):
        folder = run / "samples" / f"step-{step}"
        (line,) = re.findall(rf"samples in {re.escape(str(folder))}, .*", log)
        said = dict(re.findall(r"(piece-\d) \d+ bars, (\d+) notes", line))
        assert said, "an untrained model writes notes all the same"
        assert {path.name for path in folder.iterdir()} == {
            f"{name}.{kind}" for name in said for kind in ("mid", "png")
        }
        for name, num_notes in said.items():
            assert num_notes_of(folder / f"{name}.mid") == int(num_notes)


def test_a_disk_that_takes_no_samples_ends_no_run(
    recipe: ModuleType, chorale_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "samples").write_text("a file where a folder should be")
    run = train(recipe, chorale_shards, tmp_path, "--max_steps", "1")
    folder = run / "samples" / "step-1"
    assert f"no samples after step 1: {folder}: Not a directory" in (run / "train.log").read_text()
    assert (run / "model").is_dir()


def test_tensorboard_shows_and_plays_them(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "audio": 0})
    events.Reload()
    assert events.Tags()["images"] == events.Tags()["audio"] != []
    for name in events.Tags()["images"]:
        for image, sound in zip(events.Images(name), events.Audio(name), strict=True):
            assert image.width > 500 and image.height > 300
            assert sound.sample_rate == SAMPLE_RATE and sound.length_frames > SAMPLE_RATE / 4
            picture = run / "samples" / f"step-{image.step}" / f"{name.split('/')[1]}.png"
            assert picture.is_file()


def test_a_run_with_samples_trains_to_the_last_bit_as_one_without_and_compiles_nothing_for_them(
    run: Path, recipe: ModuleType, chorale_shards: Path, tmp_path: Path
) -> None:
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0
    without = train(recipe, chorale_shards, tmp_path / "without", "--samples", "0")
    assert not (without / "samples").exists()

    def losses(output: Path) -> list[float]:
        return [json.loads(line)["loss"] for line in (output / METRICS_NAME).open()]

    assert losses(run) == losses(without)
    weights = [load_weights(output / "model") for output in (run, without)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_pieces_end_when_their_time_is_over(
    recipe: ModuleType, chorale_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_SECONDS", 0.0)
    output = train(recipe, chorale_shards, tmp_path / "run", "--max_steps", "1", "--samples", "1")
    assert "piece-0 finished no bar" in (output / "train.log").read_text()
    assert not list((output / "samples" / "step-1").iterdir())


def test_a_gpu_writes_more_pieces_than_a_cpu_unless_told_how_many() -> None:
    def settled(device: str, samples: int | None) -> int:
        flags = TrainConfig(data=("shards",), samples=samples)
        config, lines = resolve(flags, device, time_utc="now")
        assert not any("samples" in line for line in lines)
        return config.samples

    assert settled("cuda", None) > settled("cpu", None) == 1
    assert settled("cpu", 7) == 7 and settled("cuda", 0) == 0


@pytest.mark.slow
def test_stage_3_says_once_that_no_rank_could_write_them(
    recipe: ModuleType, chorale_shards: Path, tmp_path: Path
) -> None:
    more = ("--samples", "1", "--config", f"{ROOT}/ds_configs/zero3.json")
    output = train(recipe, chorale_shards, tmp_path / "run", *more)
    assert (output / "train.log").read_text().count("no samples: under ZeRO stage 3") == 1
    assert not (output / "samples").exists()
