"""Training an adapter: what it learns from, what stays as it is, what is written and refused."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from meloformer.bridge.adapter import load_adapter
from meloformer.bridge.bridges import load_bridge
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.bridge_training.adapter import AdapterTrainConfig, kind_of, prepare_adapter
from meloformer.bridge_training.loop import train
from meloformer.bridge_training.prepare import PreparedBridge, prepare
from meloformer.command_line import parse_flags
from meloformer.errors import CheckpointError, ConfigError, MeloFormerError
from meloformer.model.attention import build_plan
from meloformer.model.injection import Injection
from meloformer.model.masks import rule_of
from meloformer.model.weights import load_model, model_fingerprint
from tests.bridge.text_encoders import write_qwen3
from tests.bridge_training.adapter_folders import write_adapter_data
from tests.bridge_training.conftest import ROOT
from tests.layouts import layout_of
from tests.training.launching import python, run, torchrun

Flags = Callable[..., AdapterTrainConfig]
SMALL = (
    "--hidden_width 16 --batch_size 4 --max_steps 4 --learning_rate 1e-2 --warmup_steps 0 "
    f"--device cpu --config {ROOT}/ds_configs/zero2.json"
).split()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, chorale_shards: Path) -> Path:
    return write_adapter_data(tmp_path_factory.mktemp("adapter"), chorale_shards)


@pytest.fixture(scope="module")
def words(folders: Path, chorale_shards: Path) -> Callable[..., list[str]]:
    """Flags of a small run; more of them replace those before."""

    def words_for(output: Path, **more: Any) -> list[str]:
        values = {
            "bridge": folders / "qformer",
            "checkpoint": folders / "base",
            "data": chorale_shards,
            "targets": folders / "targets",
            "captions": folders / "captions.jsonl",
            "output": output,
            **more,
        }
        return [*SMALL, *(word for k, v in values.items() for word in (f"--{k}", str(v)))]

    return words_for


@pytest.fixture(scope="module")
def flags(words: Callable[..., list[str]]) -> Flags:
    return lambda output, **more: parse_flags(AdapterTrainConfig, words(output, **more))


def lines(output: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (output / name).open()]


@pytest.fixture(scope="module")
def whole(flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with a checkpoint after two."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert train(prepare_adapter(flags(output, save_every=2, ema=0.5))) == 0
    return output


def test_the_adapter_alone_is_trained_and_finds_a_better_way_than_the_blend(whole: Path) -> None:
    (found,) = lines(whole, "validation.jsonl")
    assert found["loss"] == found["nats_adapter"] < found["nats_blend"] < 3 * found["nats_none"]
    weights = load_file(whole / "model" / "model.safetensors")
    assert {name.partition(".")[0] for name in weights} == {"hidden", "change"}
    averaged = load_file(whole / "model_ema" / "model.safetensors")
    assert not torch.equal(weights["change.weight"], averaged["change.weight"])
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-2", "step-4"]


def test_what_is_written_belongs_to_its_base_and_its_bridge(whole: Path, folders: Path) -> None:
    adapter, bridge = load_adapter(whole), load_bridge(folders / "qformer")
    adapter.check_base(model_fingerprint(folders / "base/model"))
    adapter.check_bridge(bridge)
    with pytest.raises(CheckpointError, match="found an adapter to the qformer"):
        adapter.check_bridge(load_bridge(folders / "diffusion_bridge"))
    config = json.loads((whole / "model/config.json").read_text())
    assert (config["model_type"], config["step"], config["layer"]) == ("adapter", 4, 3)
    assert torch.equal(adapter.model.mean_D, bridge.mean_D)
    assert load_adapter(whole / "checkpoints/step-2").folder.parent.name == "step-2"


def test_a_resumed_run_repeats_the_losses_and_ends_with_the_same_weights(
    whole: Path, flags: Flags, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(whole, tmp_path / "again"))
    more = {"save_every": 2, "ema": 0.5}
    train(prepare_adapter(flags(again, resume=again / "checkpoints/step-2", **more)))
    for name in ("metrics.jsonl", "validation.jsonl"):
        found, wanted = lines(again, name), lines(whole, name)
        assert [line["loss"] for line in found] == [line["loss"] for line in wanted]
    found, wanted = (load_file(run / "model" / "model.safetensors") for run in (again, whole))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert prepare_adapter(flags(again, resume="auto", **more)).is_done


def validated(prepared: PreparedBridge) -> dict[str, float]:
    """Scores of the objective on all validation windows at once."""
    pairs = prepared.valid
    _, metrics = prepared.objective.eval()(pairs.batch(pairs.rows_in_order()))
    return {name: float(value.detach()) for name, value in metrics.items()}


def test_before_the_first_step_it_costs_what_the_blend_costs(flags: Flags, tmp_path: Path) -> None:
    scores = validated(prepare_adapter(flags(tmp_path / "run")))
    assert scores["nats_adapter"] == scores["nats_blend"] != scores["nats_none"]
    other = validated(prepare_adapter(flags(tmp_path / "run", alpha=0.1)))
    assert other["nats_adapter"] == other["nats_blend"] != scores["nats_blend"]
    assert other["nats_none"] == scores["nats_none"]


def test_a_validation_is_the_mean_over_all_tokens_of_the_windows_each_scored_alone(
    whole: Path, flags: Flags, folders: Path, tmp_path: Path
) -> None:
    """Batches of two windows and one; without summaries, blended and adapted."""
    wanted = flags(whole, save_every=2, ema=0.5, resume="auto")
    pairs = prepare_adapter(wanted).valid
    model = load_model(folders / "base/model").eval()
    bridge, adapter = load_bridge(folders / "qformer"), load_adapter(whole).model
    encoder = TextEncoder.load(folders / "encoder")
    totals = dict.fromkeys(("nats_none", "nats_blend", "nats_adapter"), 0.0)
    num_targets = 0
    for row in pairs.rows_in_order():
        batch = pairs.batch([row])
        (ids,), num_bars = batch.tokens, pairs.window(row).bars
        text = pairs.states.texts[row.text].text
        summaries = bridge.summaries(encoder.encode([text]), num_bars)
        summaries = torch.nn.functional.pad(summaries, (0, 0, 0, 128 - num_bars))
        plain = layout_of(ids)
        shape = {"summaries_BSD": summaries, "mask_BS": plain.piece_BS >= 0}
        for name, injection in {
            "nats_none": None,
            "nats_blend": Injection(**shape),
            "nats_adapter": Injection(**shape, strategy="adapter", adapter=adapter),
        }.items():
            layout = plain if injection is None else injection.layout(plain)
            plan = build_plan(layout, rule_of(model.config.rule))
            with torch.no_grad():
                logits = model(torch.from_numpy(ids).long()[None], layout, plan, injection)[0]
            chances = logits.log_softmax(-1)
            totals[name] -= sum(float(chances[t, int(ids[t + 1])]) for t in range(len(ids) - 1))
        num_targets += len(ids) - 1
    (found,) = lines(whole, "validation.jsonl")
    for name, total in totals.items():
        assert found[name] == pytest.approx(total / num_targets, rel=1e-4), name


def test_of_many_validation_windows_some_are_looked_at(flags: Flags, tmp_path: Path) -> None:
    few = prepare_adapter(flags(tmp_path / "run", validation_windows=2)).valid
    every = prepare_adapter(flags(tmp_path / "run", validation_windows=0)).valid
    assert len(every) == 5 and [every.windows.index(n) for n in few.windows] == [0, 2]


def test_a_diffusion_bridge_is_asked_with_the_seed_of_the_window(
    flags: Flags, folders: Path, tmp_path: Path
) -> None:
    given = {"bridge": folders / "diffusion_bridge", "steps": 2}
    prepared = prepare_adapter(flags(tmp_path / "run", **given))
    pairs = prepared.train
    batch = pairs.batch(pairs.rows_of_step(1, 2))
    objective = prepared.objective.eval()
    other = replace(batch, row_seeds=[seed + 1 for seed in batch.row_seeds])
    with torch.no_grad():
        once, again, drawn_anew = (float(objective(each)[0]) for each in (batch, batch, other))
    assert once == again != drawn_anew
    # Wherever a window lies, and whatever lies beside it, its answer is its own.
    total = num_targets = 0.0
    for row in pairs.rows_of_step(1, 2):
        alone = pairs.batch([row])
        with torch.no_grad():
            total += float(objective(alone)[0]) * alone.num_targets
        num_targets += alone.num_targets
    assert once == pytest.approx(total / num_targets, rel=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"checkpoint": "other_base"}, "found a bridge to the model"),
        ({"bridge": "base"}, "model_type 'museformer'; allowed: qformer"),
        ({"bridge": "absent"}, "no such folder"),
        ({"checkpoint": "absent"}, "no such folder"),
        ({"bridge_weights": "ema"}, "no averaged weights"),
        ({"guidance": 2}, "--guidance 2 with --bridge"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_anything_is_encoded(
    flags: Flags, folders: Path, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    is_path = {"checkpoint", "bridge"}
    given = {k: folders / v if k in is_path else v for k, v in more.items()}
    with pytest.raises(MeloFormerError, match=said) as refusal:
        prepare_adapter(flags(tmp_path / "run", captions=tmp_path / "none.jsonl", **given))
    assert "\n" not in str(refusal.value) and not (tmp_path / "run").exists()


def test_windows_of_more_bars_than_the_bridge_was_trained_on_are_refused(
    flags: Flags, folders: Path, tmp_path: Path
) -> None:
    wanted = flags(tmp_path / "run")
    bridge = load_bridge(folders / "qformer")
    assert kind_of(wanted, bridge).most_bars == bridge.trained_bars
    with pytest.raises(ConfigError, match="windows of up to 3 bars, allowed 2"):
        prepare(wanted, kind_of(wanted, replace(bridge, trained_bars=2)))


def test_it_begins_as_the_blend_that_the_bridge_was_trained_with(
    flags: Flags, folders: Path, tmp_path: Path
) -> None:
    bridge = Path(shutil.copytree(folders / "qformer", tmp_path / "qformer"))
    found = next(bridge.rglob("model/config.json"))
    found.write_text(json.dumps(json.loads(found.read_text()) | {"token_loss_alpha": 0.25}))
    for alpha, wanted in ((None, 0.25), (0.5, 0.5)):
        more = {} if alpha is None else {"alpha": alpha}
        prepared = prepare_adapter(flags(tmp_path / f"run-{wanted}", bridge=bridge, **more))
        assert prepared.objective.bridge.config.alpha == wanted
    assert prepare_adapter(flags(tmp_path / "run")).objective.bridge.config.alpha == 0.7


def test_states_of_another_encoder_than_the_bridges_are_refused(
    flags: Flags, tmp_path: Path
) -> None:
    given = {"text_encoder": write_qwen3(tmp_path / "other", seed=1), "states": tmp_path / "states"}
    with pytest.raises(CheckpointError, match="found a bridge from the encoder"):
        prepare_adapter(flags(tmp_path / "run", **given))


def test_a_run_goes_on_with_its_own_bridge_alone(whole: Path, flags: Flags, folders: Path) -> None:
    wanted = flags(whole, ema=0.5, resume="auto", bridge=folders / "diffusion_bridge")
    with pytest.raises(ConfigError, match="objective: found"):
        prepare_adapter(wanted)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"alpha": 2}, "--alpha 2"),
        ({"hidden_width": 0}, "--hidden_width 0"),
        ({"validation_windows": -1}, "--validation_windows -1"),
        ({"steps": 0}, "--steps 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    flags: Flags, tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        flags(tmp_path / "run", **wrong)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_ranks_have_the_losses_and_the_validation_of_one_process(
    stage: str, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Windows of several lengths, so that ranks have other numbers of tokens."""
    recipe, config = "launch/train_adapter.py", f"ds_configs/{stage}.json"
    for command, name, rows in ((python(), "one", 4), (torchrun(2), "two", 2)):
        given = words(tmp_path / name, batch_size=rows, config=config)
        done = run([*command, recipe, *given], limit_seconds=1200)
        assert done.returncode == 0, done.stderr[-3000:]
    for file, names in (
        ("metrics.jsonl", ("loss", "grad_norm", "nats_adapter")),
        ("validation.jsonl", ("loss", "nats_none", "nats_blend", "nats_adapter")),
    ):
        for one, two in zip(lines(tmp_path / "one", file), lines(tmp_path / "two", file), strict=1):
            assert [two[key] for key in names] == pytest.approx(
                [one[key] for key in names], rel=1e-4
            )
            assert all(math.isfinite(one[key]) for key in names)
