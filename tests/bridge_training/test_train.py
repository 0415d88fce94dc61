"""A bridge from its pairs to its folder, in one process: what is written, what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from meloformer.bridge.bridges import load_bridge
from meloformer.bridge.targets import SummaryTargets
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge_training import heads_of_captions
from meloformer.bridge_training.loop import train
from meloformer.bridge_training.outlook import outlook
from meloformer.bridge_training.prepare import prepare
from meloformer.bridge_training.qformer import QFormerTrainConfig
from meloformer.errors import CheckpointError, ConfigError, ShardError, TrainingError
from meloformer.training.health import check_run
from meloformer.training.run_reader import RunReader
from meloformer.training.watch import picture
from tests.bridge_training.pair_folders import WIDTH, WORDS, write_captions, write_targets

Flags = Callable[..., QFormerTrainConfig]


def run(flags: QFormerTrainConfig) -> list[dict]:
    """Train; the lines of metrics.jsonl."""
    prepared = prepare(flags, flags.kind)
    if not prepared.is_done:
        assert train(prepared) == 0
    return [json.loads(line) for line in (prepared.output / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def whole(data: Path, flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a checkpoint after four."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    run(flags(output, save_every=4, ema=0.9, validate_every=3))
    return output


def test_a_resumed_run_repeats_the_losses_and_ends_with_the_weights_of_one_never_stopped(
    whole: Path, flags: Flags, tmp_path: Path
) -> None:
    """Dropout is on: what is left out belongs to the step, and not to the start."""
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    lines = run(
        flags(again, save_every=4, ema=0.9, validate_every=3, resume=again / "checkpoints/step-4")
    )
    known = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in known]
    assert json.loads((again / "run.json").read_text())["starts"][1]["step"] == 4
    for name in ("model", "model_ema"):
        found = load_file(again / name / "model.safetensors")
        wanted = load_file(whole / name / "model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_the_folder_of_a_trained_bridge_says_whose_summaries_and_whose_states_they_are(
    whole: Path, data: Path
) -> None:
    bridge, encoder = load_bridge(whole), TextEncoder.load(data / "encoder")
    targets = SummaryTargets.open(data / "targets")
    bridge.check_base(targets.base["fingerprint"])
    bridge.check_encoder(encoder.fingerprint)
    assert torch.equal(bridge.mean_D, targets.mean) and torch.equal(bridge.std_D, targets.std)
    summaries = bridge.summaries(encoder.encode([WORDS["en"][0]]), 11)
    assert summaries.shape == (1, 11, WIDTH)
    # The base's own scale, whose mean is far from 0.
    assert summaries.mean() > 2
    assert bridge.trained_bars == 9 < bridge.model.config.num_queries
    assert bridge.token_loss_alpha is None, "without a token loss nothing was blended"


def test_averaged_weights_are_others_and_are_loaded_when_asked_for(whole: Path) -> None:
    raw, ema, auto = (load_bridge(whole, weights=w) for w in ("raw", "ema", "auto"))
    assert (raw.weights, ema.weights, auto.weights) == ("raw", "ema", "ema")
    weights = [dict(bridge.model.named_parameters()) for bridge in (raw, ema)]  # type: ignore[attr-defined]
    assert not torch.equal(weights[0]["queries"], weights[1]["queries"])


def test_the_run_folder_says_what_was_done(whole: Path) -> None:
    facts = json.loads((whole / "run.json").read_text())
    assert (facts["global_batch"], facts["num_steps"]) == (8, 6)
    assert facts["settings"]["model_type"] == "qformer"
    assert facts["starts"][0]["world_size"] == 1
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[0].keys() >= {"lr", "grad_norm", "step_seconds", "data_wait", "memory_host"}
    assert list((whole / "tensorboard").glob("events.*"))
    validations = [json.loads(line) for line in (whole / "validation.jsonl").open()]
    assert [line["step"] for line in validations] == [3, 6]
    assert validations[0].keys() >= {"loss", "regression", "ema_loss"}
    assert "wrote" in (whole / "train.log").read_text()
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-4", "step-6"]


def test_a_run_is_watched_and_checked_as_that_of_a_museformer(whole: Path, tmp_path: Path) -> None:
    run = RunReader(whole)
    console = Console(width=120, record=True, file=None)
    console.print(picture(run, run.written_at() + 5, 120))
    said = console.export_text()
    for words in ("qformer, 1 rank", "step 6 of 6", "finished", "rows/s", "learning rate"):
        assert words in said, words
    best = min(line["loss"] for line in run.validations)
    assert f"best loss {best:.4f}" in said and "regression" in said
    findings = {finding.name: finding for finding in check_run(run, run.written_at() + 5)}
    assert findings["loss"].is_ok and findings["ETA"].found == "all 6 steps are done"

    going = Path(shutil.copytree(whole, tmp_path / "going"))
    facts = json.loads((going / "run.json").read_text())
    (going / "run.json").write_text(json.dumps(facts | {"num_steps": 12}))
    run = RunReader(going)
    findings = {finding.name: finding for finding in check_run(run, run.written_at() + 5)}
    assert "rows/s" in findings["ETA"].found


def test_a_finished_run_is_left_as_it_is(whole: Path, flags: Flags) -> None:
    before = (whole / "model" / "model.safetensors").stat().st_mtime_ns
    run(flags(whole, ema=0.9, resume="auto"))
    assert (whole / "model" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_qformer_learns_which_words_mean_which_summaries(flags: Flags, tmp_path: Path) -> None:
    run(flags(tmp_path / "run", max_steps=300, dropout=0, validate_every=0, save_every=0))
    (line,) = (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    # Pieces of the validation are others, of the same four kinds; 1 is what their mean reaches.
    assert json.loads(line)["regression"] < 0.2


def test_a_dry_run_says_what_would_be_done_and_writes_no_run(flags: Flags, tmp_path: Path) -> None:
    prepared = prepare(flags(tmp_path / "run"), flags(tmp_path / "run").kind)
    table = outlook(prepared)
    assert table.row_count >= 10
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"seed": 1}, "seed: found 1, the run in --output was started with 0"),
        ({"ema": 0.5}, "ema: found 0.5"),
        ({"bridge_layers": 1}, "model: found"),
        ({"temperature": 1.0}, "objective: found"),
        ({"resume": "none"}, "holds a run"),
    ],
)
def test_a_run_goes_on_with_the_settings_of_its_start_alone(
    whole: Path, flags: Flags, more: dict, said: str
) -> None:
    wanted = flags(whole, **{"ema": 0.9, "resume": "auto", **more})
    with pytest.raises(ConfigError, match=said):
        prepare(wanted, wanted.kind)


def test_a_run_goes_on_with_its_own_summaries_alone(
    whole: Path, flags: Flags, tmp_path: Path
) -> None:
    targets = write_targets(tmp_path / "targets", fingerprint="c" * 64)
    wanted = flags(whole, ema=0.9, resume="auto", targets=targets)
    with pytest.raises(ConfigError, match="was started with"):
        prepare(wanted, wanted.kind)


def test_summaries_of_a_base_that_never_followed_any_are_refused(
    flags: Flags, tmp_path: Path
) -> None:
    targets = write_targets(tmp_path / "targets", open_summary_rate=0.0)
    wanted = flags(tmp_path / "run", targets=targets)
    with pytest.raises(ConfigError, match="open_summary_rate 0"):
        prepare(wanted, wanted.kind)
    prepare(replace(wanted, allow_closed_base=True), wanted.kind)


def test_targets_of_another_width_than_their_base_are_refused(flags: Flags, tmp_path: Path) -> None:
    wanted = flags(tmp_path / "run", targets=write_targets(tmp_path / "targets", width=99))
    with pytest.raises(ConfigError, match="16 wide of a model 99 wide"):
        prepare(wanted, wanted.kind)


def test_windows_of_more_bars_than_the_bridge_has_queries_are_refused_before_a_text_is_encoded(
    flags: Flags, tmp_path: Path
) -> None:
    wanted = flags(tmp_path / "run", text_encoder=tmp_path / "none", states=tmp_path / "states")
    assert wanted.kind.most_bars == wanted.model_config(1, 1).num_queries
    with pytest.raises(ConfigError, match=r"up to 9 bars, allowed 8, .* --max_bars 8"):
        prepare(wanted, replace(wanted.kind, most_bars=8))
    with pytest.raises(ConfigError, match="no such folder"):
        prepare(wanted, replace(wanted.kind, most_bars=9))


def test_missing_targets_captions_and_empty_captions_are_refused(
    flags: Flags, tmp_path: Path
) -> None:
    wanted = flags(tmp_path / "run", targets=tmp_path / "none")
    with pytest.raises(ShardError, match="extract_summaries"):
        prepare(wanted, wanted.kind)
    wanted = flags(tmp_path / "run", captions=tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="no such file"):
        prepare(wanted, wanted.kind)
    empty = write_captions(tmp_path / "captions.jsonl")
    empty.write_text("")
    wanted = flags(tmp_path / "run", captions=empty)
    with pytest.raises(ConfigError, match="found no text"):
        prepare(wanted, wanted.kind)


def test_states_of_other_captions_are_refused(data: Path, flags: Flags, tmp_path: Path) -> None:
    other = write_captions(tmp_path / "captions.jsonl", first_bar=1)
    prepare(flags(tmp_path / "run"), flags(tmp_path / "run").kind)  # the states are there now
    wanted = flags(tmp_path / "run", captions=other, states=data / "captions-encoder")
    with pytest.raises(ConfigError, match="other captions"):
        prepare(wanted, wanted.kind)


def test_neither_captions_nor_states_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither --captions nor --states"):
        QFormerTrainConfig(targets=tmp_path)


def test_a_damaged_checkpoint_is_refused(whole: Path, flags: Flags) -> None:
    part = whole / "checkpoints" / "step-4" / "parts" / "rank-00000.safetensors"
    kept = part.read_bytes()
    part.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        wanted = flags(whole, ema=0.9, resume=part.parents[1])
        with pytest.raises(CheckpointError, match="sha256"):
            prepare(wanted, wanted.kind)
    finally:
        part.write_bytes(kept)


def test_a_loss_that_stays_not_finite_ends_the_run_with_a_message(
    flags: Flags, tmp_path: Path
) -> None:
    wanted = flags(tmp_path / "run", max_steps=20, save_every=0, contrastive_weight=0)
    prepared = prepare(wanted, wanted.kind)
    with torch.no_grad():
        prepared.bridge.queries.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="10 steps in a row"):
        train(prepared)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert {line["loss"] for line in lines} == {None}


@pytest.mark.slow
def test_attribute_heads_are_trained_once_and_stand_beside_every_bridge_on_the_captions(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(flags(tmp_path / "run", heads="on", max_steps=4, save_every=2, ema=0.9))
    before = (tmp_path / "run" / "heads" / "heads.safetensors").stat().st_mtime_ns

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(heads_of_captions, "train_heads", refuse)
    step = tmp_path / "run" / "checkpoints" / "step-2"
    run(flags(tmp_path / "run", heads="on", max_steps=4, save_every=2, ema=0.9, resume=step))
    assert (tmp_path / "run" / "heads" / "heads.safetensors").stat().st_mtime_ns == before
    for path in (tmp_path / "run", tmp_path / "run" / "model_ema", step):
        assert load_bridge(path).heads is not None

    run(flags(tmp_path / "another", heads="on", max_steps=1, bridge_layers=1))
    first, second = (load_bridge(tmp_path / name).heads for name in ("run", "another"))
    assert first is not None and second is not None
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    assert "attribute heads: those of" in (tmp_path / "another" / "train.log").read_text()
