"""Several folders as one training set: what is left out of it, and what is said of it."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from meloformer.batches.plan import Cursor, iterate_steps
from meloformer.command_line import parse_flags
from meloformer.errors import BatchError
from meloformer.midi.default_corpus import default_corpus_paths
from meloformer.model.counts import StepPairs, training_flops
from meloformer.progress import duration
from meloformer.shards.build import build_shards
from meloformer.shards.manifest import ShardSettings
from meloformer.shards.pool import local_engine
from meloformer.shards.reader import ShardFolder
from meloformer.shards.sources import score_source
from meloformer.training.config import TrainConfig
from meloformer.training.outlook import EXPECTED_MFU, estimated_time, outlook
from meloformer.training.prepare import Prepared, prepare
from tests.conftest import NUM_CHORALES


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the pieces of `chorale_shards` and others, most of them for validation."""
    folder = tmp_path_factory.mktemp("shards") / "other"
    chorales = [path for path in default_corpus_paths() if path.parent.name == "bach"]
    source = score_source(chorales[NUM_CHORALES // 2 : NUM_CHORALES + 10])
    settings = ShardSettings(valid_share=0.6, test_share=0.1, pieces_per_shard=8)
    build_shards(source, folder, settings, run=local_engine(2))
    return folder


def prepared(tmp_path: Path, *folders: Path, more: tuple[str, ...] = ()) -> Prepared:
    flags = "--max_seq_len 256 --batch_size 2 --gradient_accumulation_steps 2 --num_workers 0"
    data = ["--data", *map(str, folders), *more, "--output", str(tmp_path / "run")]
    return prepare(parse_flags(TrainConfig, [*flags.split(), "--device", "cpu", *data]))


def said(run: Prepared) -> str:
    console = Console(width=400)
    with console.capture() as capture:
        console.print(outlook(run))
    return capture.get()


def keys(folder: Path, *splits: str) -> set[str]:
    shards = ShardFolder.open(folder)
    return {key for split in splits for key in shards.split(split).keys()}  # noqa: SIM118


def test_no_step_of_a_mixture_trains_on_what_one_of_its_folders_holds_out(
    chorale_shards: Path, other_shards: Path, tmp_path: Path
) -> None:
    held_out = keys(chorale_shards, "valid", "test") | keys(other_shards, "valid", "test")
    trained_on = keys(chorale_shards, "train") | keys(other_shards, "train")
    assert trained_on & held_out, "the folders must disagree, or nothing is shown"

    run = prepared(tmp_path, chorale_shards, other_shards)
    index = run.data.split("train")
    for epoch in range(2):
        steps = iterate_steps(index, run.data.plan, Cursor(epoch=epoch))
        taken = {w.piece for step in steps for row in step.rows for w in row.windows}
        assert {index.key(piece) for piece in taken} == trained_on - held_out

    count = len(keys(chorale_shards, "train") & held_out) + len(
        keys(other_shards, "train") & held_out
    )
    assert any(f"{count} training pieces are left out" in note for note in run.run.notes)
    assert f"{chorale_shards}: " in said(run) and "left out" in said(run)


def test_folders_that_agree_lose_nothing(chorale_shards: Path, tmp_path: Path) -> None:
    run = prepared(tmp_path, chorale_shards, chorale_shards)
    assert run.data.describe_left_out() is None
    assert "left out" not in said(run)


def test_a_folder_of_which_nothing_is_left_is_refused(chorale_shards: Path, tmp_path: Path) -> None:
    chorales = [path for path in default_corpus_paths() if path.parent.name == "bach"]
    valid = ShardFolder.open(chorale_shards).split("valid")
    names = [valid.facts(piece)["source"] for piece in range(valid.num_pieces)]
    inside = [path for path in chorales[:NUM_CHORALES] if any(path.stem in name for name in names)]
    everything = tmp_path / "everything"
    settings = ShardSettings(valid_share=0.0, test_share=0.0)
    build_shards(score_source(inside), everything, settings, run=local_engine(1))
    with pytest.raises(BatchError, match=rf"{everything}: .* is held out by another folder"):
        prepared(tmp_path, everything, chorale_shards)


def test_the_outlook_says_the_weight_of_each_folder_and_its_share_of_an_epoch(
    chorale_shards: Path, other_shards: Path, tmp_path: Path
) -> None:
    run = prepared(tmp_path, chorale_shards, other_shards, more=("--data_weights", "1", "2.5"))
    tokens = [
        ShardFolder.open(folder).manifest.total("train", "tokens") * weight
        for folder, weight in ((chorale_shards, 1), (other_shards, 2.5))
    ]
    for folder, weight, own in zip(
        (chorale_shards, other_shards), ("1", "2.5"), tokens, strict=True
    ):
        share = f"{own / sum(tokens):.1%}"
        assert re.search(rf"{folder}: .*, weight {weight}, {share} of an epoch's tokens", said(run))
    alone = said(prepared(tmp_path, chorale_shards))
    assert "weight" not in alone.split("model")[0]


def test_hours_are_those_of_the_bars_that_there_are_and_not_of_the_room_for_them(
    chorale_shards: Path, other_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared(tmp_path, chorale_shards, other_shards, more=("--data_weights", "1", "2"))
    steps = list(iterate_steps(run.data.split("train"), run.data.plan))
    rows = [row for step in steps for row in step.rows]
    bars = sum(window.last_bar - window.first_bar for row in rows for window in row.windows)
    tokens = run.data.epoch(0).num_tokens
    assert run.data.bars_per_token == pytest.approx(bars / tokens, rel=0.05)

    def hours(bars_per_token: float) -> float:
        nothing = StepPairs(update=0, summarize=0)
        flops = training_flops(run.model, 10**6, int(10**6 * bars_per_token), nothing)
        return flops / (1e9 * EXPECTED_MFU) * run.num_steps / 3600

    monkeypatch.setattr("meloformer.training.outlook.peak_flops", lambda device: 1e9)
    said_time = estimated_time(run, 10**6)
    expected = duration(3600 * hours(run.data.bars_per_token))
    assert said_time.startswith(f"about {expected} at")
    assert duration(3600 * hours(1 / 16)) != expected, "the two must differ, or nothing is shown"


def test_the_outlook_says_the_peak_of_a_rank_its_parts_and_whether_it_fits(
    chorale_shards: Path, tmp_path: Path
) -> None:
    line = next(
        x for x in said(prepared(tmp_path, chorale_shards)).splitlines() if "memory per rank" in x
    )
    peak, *parts = map(float, re.findall(r"(\d+\.\d\d)", line))
    assert re.search(r"weights .* gradients .* optimizer .* activations kept .* passing", line)
    assert sum(parts) == pytest.approx(peak, abs=0.05)
    assert "; fits 90% of the" in line
    tight = ("--memory_headroom", "0.000001")
    assert "; does not fit 0% of the" in said(prepared(tmp_path, chorale_shards, more=tight))


def test_steps_of_a_mixture_are_counted_as_long_as_its_epochs_take_few_pieces(
    chorale_shards: Path, other_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--data_weights", "0.5", "0.5", "--epochs", "2")
    run = prepared(tmp_path, chorale_shards, other_shards, more=more)
    num_pieces = len(keys(chorale_shards, "train")) + len(keys(other_shards, "train"))
    monkeypatch.setattr("meloformer.training.data._MAX_COUNTED", num_pieces)
    assert run.data.count_steps()[1] is None
    monkeypatch.setattr("meloformer.training.data._MAX_COUNTED", num_pieces - 1)
    assert "extrapolated" in str(run.data.count_steps()[1])


def test_a_bar_that_no_row_takes_is_named_with_folder_key_source_and_both_remedies(
    chorale_shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(BatchError) as refused:
        prepared(tmp_path, chorale_shards, more=("--max_seq_len", "40"))
    index = ShardFolder.open(chorale_shards).split("train")
    found = re.fullmatch(
        rf"{chorale_shards}/(train/shard-\d+\.tar): piece (\w+) \(from (.*)\): bar \d+ takes "
        r"(\d+) tokens with its prefix, a row 40; raise --max_seq_len to at least \4, or build "
        r"the shards again with --max_bar_tokens 40, which leaves such pieces out",
        str(refused.value),
    )
    assert found, refused.value
    piece = index.keys().index(found[2])
    assert index.facts(piece)["source"] == found[3]
