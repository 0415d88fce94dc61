"""The folder of a bridge: what comes back is what was written, and what is damaged is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from meloformer.bridge.bridge_folder import (
    STATISTICS_NAME,
    BridgeFacts,
    find_bridge_folder,
    save_bridge,
)
from meloformer.bridge.bridges import BridgeBatch, load_bridge
from meloformer.bridge.qformer import QFormer
from meloformer.errors import CheckpointError
from meloformer.model.injection import INJECTION_LAYER
from tests.bridge.test_qformer import SMALL, qformer, text_states

MEAN, STD = torch.linspace(-3, 3, 32), torch.linspace(0.5, 2, 32)


def facts_of(model: QFormer, **more: Any) -> BridgeFacts:
    return BridgeFacts.of(
        model,
        base={"fingerprint": "b" * 64, "width": 32},
        encoder={"fingerprint": "e" * 64, "name": "minilm", "width": 24},
        mean_D=MEAN,
        std_D=STD,
        **more,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with model/ and without an average."""
    model = qformer()
    save_bridge(tmp_path / "run" / "model", facts_of(model), model.state_dict())
    return tmp_path / "run"


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_loaded_bridge_answers_as_the_one_that_was_saved_in_the_scale_of_its_base(
    run: Path,
) -> None:
    bridge, states = load_bridge(run), text_states([4, 6])
    assert bridge.model.config == SMALL
    wanted = qformer().sample(states, 7, seed=0) * STD + MEAN
    assert torch.equal(bridge.summaries(states, 7), wanted)
    assert not bridge.model.training  # type: ignore[attr-defined]
    assert not any(p.requires_grad for p in bridge.model.parameters())  # type: ignore[attr-defined]


def test_a_bridge_says_where_its_answers_enter_and_older_ones_mean_the_layer_of_their_targets(
    run: Path,
) -> None:
    assert load_bridge(run).layer == INJECTION_LAYER
    path = run / "model" / "config.json"
    values = json.loads(path.read_text())
    del values["layer"]
    path.write_text(json.dumps(values))
    assert load_bridge(run).layer == INJECTION_LAYER
    model = qformer()
    save_bridge(run / "model", facts_of(model, layer=0), model.state_dict())
    assert load_bridge(run).layer == 0


def test_weights_in_bf16_are_used_in_fp32(run: Path) -> None:
    model = qformer()
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    save_bridge(run / "model", facts_of(model), state)
    summaries = load_bridge(run).summaries(text_states([4]), 5)
    assert summaries.dtype == torch.float32


def test_a_bridge_is_found_in_a_run_a_step_and_a_model_folder(run: Path) -> None:
    step = run / "checkpoints" / "step-10" / "model"
    model = qformer()
    save_bridge(step, facts_of(model), model.state_dict())
    assert find_bridge_folder(run) == run / "model"
    assert find_bridge_folder(step) == step
    assert find_bridge_folder(run / "checkpoints" / "step-10") == step


def test_averaged_weights_that_are_not_there_are_refused_and_auto_takes_the_others(
    run: Path,
) -> None:
    with pytest.raises(CheckpointError, match=r"no averaged weights .* --ema 0.999"):
        load_bridge(run, weights="ema")
    assert load_bridge(run, weights="auto").weights == "raw"


def test_another_base_and_another_encoder_are_refused(run: Path) -> None:
    bridge = load_bridge(run)
    bridge.check_base("b" * 64)
    bridge.check_encoder("e" * 64)
    with pytest.raises(CheckpointError, match="train a bridge for this one"):
        bridge.check_base("c" * 64)
    with pytest.raises(CheckpointError, match="--text_encoder minilm"):
        bridge.check_encoder("c" * 64)


@pytest.mark.parametrize(
    ("statistics", "said"),
    [
        ({"mean": MEAN}, "std: found none"),
        ({"mean": MEAN, "std": STD[:5]}, r"std: found \(5,\), expected \(32,\)"),
        ({"mean": MEAN, "std": torch.zeros(32)}, "deviation of 0"),
        ({"mean": MEAN * float("nan"), "std": STD}, "not finite"),
    ],
)
def test_a_bridge_without_the_statistics_of_its_base_is_refused(
    run: Path, statistics: dict[str, torch.Tensor], said: str
) -> None:
    save_file(statistics, run / "model" / STATISTICS_NAME)
    with pytest.raises(CheckpointError, match=said):
        load_bridge(run)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "museformer"}, "model_type 'museformer'; allowed: qformer"),
        ({"format": 2}, "found format 2, expected 1"),
        ({"base": {}}, "base: found no fingerprint"),
        ({"encoder": None}, "encoder: found no fingerprint"),
        ({"layer": -1}, "layer: found -1, expected the layer after which"),
        ({"layer": "0"}, "layer: found '0'"),
        ({"trained_bars": 13}, "trained_bars: found 13, expected 1 to 12"),
        ({"trained_bars": 0}, "trained_bars: found 0"),
        ({"trained_bars": "9"}, "trained_bars: found '9'"),
        ({"token_loss_alpha": 1.5}, "token_loss_alpha: found 1.5, expected 0 to 1"),
        ({"token_loss_alpha": "a"}, "token_loss_alpha: found 'a'"),
        ({"num_layers": 3}, "expected"),
        ({"text_width": 25}, "text_projection.weight"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(run: Path, values: dict, said: str) -> None:
    change(run / "model", **values)
    with pytest.raises(CheckpointError, match=said):
        load_bridge(run)


def test_a_bridge_says_on_how_many_bars_it_was_trained_and_how_its_token_loss_blended(
    run: Path,
) -> None:
    bridge = load_bridge(run)
    assert (bridge.trained_bars, bridge.token_loss_alpha) == (SMALL.num_queries, None)
    change(run / "model", trained_bars=5, token_loss_alpha=0)
    bridge = load_bridge(run)
    assert (bridge.trained_bars, bridge.token_loss_alpha) == (5, 0.0)


def test_missing_and_damaged_files_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_bridge(tmp_path / "none")
    (run / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no bridge in it"):
        load_bridge(run / "empty")
    (run / "model" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_bridge(run)


def test_a_mean_over_bars_of_another_shape_is_no_mean() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    batch = BridgeBatch(
        states=text_states([2, 2]),
        summaries_BSD=torch.zeros(2, 3, 4),
        mask_BS=mask,
        row_seeds=(0, 1),
    )
    with pytest.raises(AssertionError):
        batch.mean_over_bars(torch.zeros(3))
