"""Targets on disk: whole or not there, tied to their model, normalised by their own statistics."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from meloformer.bridge.extraction import (
    WindowSettings,
    base_facts,
    check_base,
    extract,
    windows_of_piece,
)
from meloformer.bridge.summarising import summaries_of_windows
from meloformer.bridge.targets import SummaryTargets, TargetWindow
from meloformer.bridge.targets_writer import writing_targets
from meloformer.errors import CheckpointError, ConfigError, ShardError
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from tests.bridge.bases import random_base

# Small enough for chorales of a dozen bars to be cut.
SETTINGS = WindowSettings(max_bars=6, overlap=2, max_seq_len=256)
SMALL = {"width": 32, "ffn_width": 32}


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    return random_base(**SMALL)


@pytest.fixture(scope="module")
def shards(chorale_shards) -> ShardFolder:
    """A few pieces of each split."""
    whole = ShardFolder.open(chorale_shards)
    first = {"train": 2, "valid": 1, "test": 1}
    splits = {split: whole.manifest.splits[split][:num] for split, num in first.items()}
    return dataclasses.replace(whole, manifest=dataclasses.replace(whole.manifest, splits=splits))


def extract_to(output: Path, model: MuseFormer, shards: ShardFolder, **changes) -> SummaryTargets:
    facts = base_facts(model, Path("runs/x/model"), changes.pop("fingerprint", "f" * 64))
    settings = changes.pop("settings", SETTINGS)
    extract(model, facts, shards, output, settings, **{"bars_per_file": 80, **changes})
    return SummaryTargets.open(output)


@pytest.fixture(scope="module")
def targets(model, shards, tmp_path_factory) -> SummaryTargets:
    return extract_to(tmp_path_factory.mktemp("targets") / "whole", model, shards)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_window_of_every_piece_is_there_with_its_own_summaries(
    model, shards, targets
) -> None:
    for split in ("train", "valid", "test"):
        index, found = shards.split(split), targets.split(split)
        pieces = [windows_of_piece(index, n, SETTINGS) for n in range(index.num_pieces)]
        assert found.windows == [window for piece in pieces for window in piece.windows]
        assert len(found) == targets.manifest["splits"][split]["windows"]
        for number in (0, len(found) // 2, len(found) - 1):
            ids = [window for piece in pieces for window in piece.ids][number]
            (expected,) = summaries_of_windows(model, [ids])
            torch.testing.assert_close(found.summaries(number), expected, atol=1e-5, rtol=1e-3)
    assert len(targets.split("train").files) > 1


def test_statistics_are_those_of_all_bars_of_train(targets) -> None:
    train = targets.split("train")
    bars_ND = torch.cat([train.summaries(n) for n in range(len(train))]).double()
    assert len(bars_ND) == targets.manifest["splits"]["train"]["bars"]
    torch.testing.assert_close(targets.mean.double(), bars_ND.mean(0), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(
        targets.std.double(), bars_ND.std(0, correction=0), rtol=1e-6, atol=0
    )
    assert 0 < targets.manifest["worst_rounding_of_std"] < 0.01


def test_a_batch_is_normalised_and_its_mask_ends_with_each_window(targets) -> None:
    train = targets.split("train")
    chosen = [3, 0, len(train) - 1]
    summaries_BSD, mask_BS = train.batch(chosen)
    assert summaries_BSD.dtype == torch.float32 and mask_BS.dtype == torch.bool
    assert mask_BS.sum(1).tolist() == [train.windows[number].bars for number in chosen]
    for row, number in enumerate(chosen):
        own = (train.summaries(number) - targets.mean) / targets.std
        torch.testing.assert_close(summaries_BSD[row, mask_BS[row]], own)
    assert summaries_BSD[~mask_BS].eq(0).all()
    everything, mask = train.batch(range(len(train)), num_bars=160)
    assert everything.shape == (len(train), 160, targets.width)
    torch.testing.assert_close(
        everything[mask].mean(0), torch.zeros(targets.width), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        everything[mask].std(0, correction=0), torch.ones(targets.width), atol=1e-4, rtol=0
    )


def test_targets_travel_into_a_data_worker(targets) -> None:
    train = targets.split("train")
    expected = train.batch([0, 5])[0]
    assert pickle.loads(pickle.dumps(train)).batch([0, 5])[0].equal(expected)


class KilledError(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def begin_and_kill(output: Path, model: MuseFormer, shards: ShardFolder, **changes) -> float:
    """Bars done before the end, of an extraction that dies in its second file."""
    done = 0.0

    def die(bars: float) -> None:
        nonlocal done
        done += bars
        if done > 90:
            raise KilledError

    with pytest.raises(KilledError):
        extract_to(output, model, shards, on_progress=die, **changes)
    return done


def test_a_killed_extraction_leaves_nothing_that_opens_and_goes_on_to_the_same_bytes(
    model, shards, targets, tmp_path
) -> None:
    output = tmp_path / "killed"
    begin_and_kill(output, model, shards)
    assert not output.exists()
    with pytest.raises(ShardError, match="extract_summaries"):
        SummaryTargets.open(output)
    with pytest.raises(ShardError, match="did not finish"):
        SummaryTargets.open(output.with_name(".killed.extracting"))
    begun = output.with_name(".killed.extracting") / "train" / "summaries-00000.safetensors"
    written = begun.stat().st_mtime_ns
    extract_to(output, model, shards)
    assert (output / "train" / begun.name).stat().st_mtime_ns == written, "made a second time"
    assert contents(output) == contents(targets.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["killed"]


_EXTRACT = """
import sys
from pathlib import Path
from meloformer.bridge.extraction import WindowSettings, extract
from meloformer.shards.reader import ShardFolder
from tests.bridge.bases import random_base

model = random_base(width=32, ffn_width=32)
windows = WindowSettings(max_bars=6, overlap=2, max_seq_len=256)
base = {"fingerprint": "f" * 64}
shards = ShardFolder.open(sys.argv[1])
extract(model, base, shards, Path(sys.argv[2]), windows, bars_per_file=80)
"""


@pytest.mark.slow
def test_a_process_ended_by_sigkill_is_gone_on_with_by_the_next(chorale_shards, tmp_path) -> None:
    def command(name: str) -> list[str]:
        return [sys.executable, "-c", _EXTRACT, str(chorale_shards), str(tmp_path / name)]

    subprocess.run(command("whole"), check=True)
    killed = subprocess.Popen(command("killed"))
    note = tmp_path / ".killed.extracting" / "work" / "train-00001.json"
    while not note.exists():
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed").exists()
    subprocess.run(command("killed"), check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_what_another_model_began_is_thrown_away(shards, model, targets, tmp_path) -> None:
    output = tmp_path / "mixed"
    begin_and_kill(output, random_base(seed=1, **SMALL), shards, fingerprint="e" * 64)
    extract_to(output, model, shards)
    assert contents(output) == contents(targets.folder)


def test_a_file_cut_short_by_the_kill_is_made_again(model, shards, targets, tmp_path) -> None:
    output = tmp_path / "short"
    begin_and_kill(output, model, shards)
    part = output.with_name(".short.extracting") / "train" / "summaries-00000.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    extract_to(output, model, shards)
    assert contents(output) == contents(targets.folder)


def test_an_output_that_holds_something_is_left_alone(model, shards, tmp_path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing was written"):
        extract_to(tmp_path / "taken", model, shards)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "taken",
        "taken/thesis.txt",
    ]


def test_two_extractions_to_one_place_do_not_meet(tmp_path) -> None:
    first, second = (writing_targets(tmp_path / "one", {"a": 1}) for _ in range(2))
    with first, pytest.raises(ConfigError, match="another extraction"):
        second.__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [".one.extracting"]


@pytest.mark.parametrize("value", [7e4, float("inf"), float("nan")])
def test_a_summary_beyond_float16_names_its_bar_and_dimension(tmp_path, value: float) -> None:
    summaries = [torch.zeros(3, 4), torch.zeros(2, 4)]
    summaries[1][1, 2] = value
    windows = [TargetWindow("a", 0, 3, "a.mid"), TargetWindow("b", 8, 10, "b.mid")]
    place = pytest.raises(ConfigError, match=r"b \(b.mid\), bar 10: .* in dimension 2 ")
    with place, writing_targets(tmp_path / "large", {}) as writer:
        writer.write("train", windows, summaries)
    assert not list(tmp_path.iterdir())


def test_files_of_any_name_are_told_apart_again(tmp_path) -> None:
    """JSON leaves the line separators of Unicode in a name as they are."""
    names = ["a\u2028b.mid", "c\u0085.mid", "\u2029", "d\x1c.mid"]
    windows = [TargetWindow(f"key{n}", 0, 2, name) for n, name in enumerate(names)]
    with writing_targets(tmp_path / "names", {"base": {}}) as writer:
        writer.write("train", windows, [torch.randn(2, 4) for _ in windows])
        writer.finish()
    assert SummaryTargets.open(tmp_path / "names").split("train").windows == windows


def test_shards_whose_train_fits_no_window_are_refused(model, shards, tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, max_seq_len=3)
    with pytest.raises(ConfigError, match="no window in train"):
        extract_to(tmp_path / "none", model, shards, settings=settings)
    assert not list(tmp_path.iterdir())


def test_bars_too_long_for_a_window_are_counted(model, shards) -> None:
    index = shards.split("train")
    lengths = np.diff(index.bar_starts(0))
    settings = dataclasses.replace(SETTINGS, max_seq_len=int(np.sort(lengths)[len(lengths) // 2]))
    found = windows_of_piece(index, 0, settings)
    held = {bar for w in found.windows for bar in range(w.first_bar, w.last_bar)}
    assert 0 < found.skipped_bars == found.num_bars - len(held)


def test_targets_of_another_model_are_refused(targets) -> None:
    targets.check_base("f" * 64)
    with pytest.raises(CheckpointError, match=r"ffffffffffff .* expected 000000000000"):
        targets.check_base("0" * 64)


def test_a_base_that_cannot_be_injected_into_is_refused() -> None:
    closed = random_base(open_summary_rate=0.0)
    with pytest.raises(ConfigError, match="--allow_closed_base"):
        check_base(closed)
    check_base(closed, allow_closed=True)
    check_base(random_base(open_summary_rate=0.3))
    with pytest.raises(ConfigError, match="more than 3 layers"):
        check_base(random_base(num_layers=3), allow_closed=True)
    with pytest.raises(ConfigError, match="no summaries"):
        check_base(random_base(summaries=False, rule="full"), allow_closed=True)


@pytest.mark.parametrize(
    "changes", [{"max_bars": 0}, {"overlap": 6}, {"overlap": -1}, {"max_seq_len": -1}]
)
def test_impossible_windows_are_refused(changes) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        dataclasses.replace(SETTINGS, **changes)


def test_windows_longer_than_the_base_was_trained_on_are_refused(model) -> None:
    with pytest.raises(ConfigError, match="allowed up to 512"):
        WindowSettings(max_seq_len=513).for_model(model)
    assert WindowSettings().for_model(model).max_seq_len == 512


def test_a_damaged_folder_says_what_is_wrong(targets, tmp_path) -> None:
    folder = shutil.copytree(targets.folder, tmp_path / "damaged")
    SummaryTargets.open(folder).verify()
    path = folder / "valid" / "summaries-00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ShardError, match=f"{path.name}: found sha256"):
        SummaryTargets.open(folder).verify()
    path.write_bytes(whole[:-2])
    with pytest.raises(ShardError, match=f"{path.name}: found {len(whole) - 2} bytes"):
        SummaryTargets.open(folder)
    path.unlink()
    with pytest.raises(ShardError, match="found none bytes"):
        SummaryTargets.open(folder)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(ShardError, match="found format 99, expected 1"):
        SummaryTargets.open(folder)
