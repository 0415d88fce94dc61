"""Model folders: found where users point, refused in a line where they are not whole."""

import json
from pathlib import Path

import pytest
import torch

from meloformer.errors import CheckpointError
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import (
    find_model_folder,
    load_model,
    model_fingerprint,
    model_metadata,
    newest_run,
    save_model,
)
from tests.layouts import tiny_config


def small_model() -> MuseFormer:
    return MuseFormer(tiny_config(num_layers=1, width=16, ffn_width=16))


def save(folder: Path, model: MuseFormer | None = None) -> None:
    model = model or small_model()
    save_model(folder, model.config, model.state_dict(), {"tokenizer": "abc"})


def test_a_model_folder_comes_back_bit_for_bit(tmp_path) -> None:
    model = MuseFormer(tiny_config())
    save(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert model_metadata(tmp_path)["tokenizer"] == "abc"


def test_a_model_without_summaries_comes_back_bit_for_bit(tmp_path) -> None:
    model = MuseFormer(tiny_config(rule="full", summaries=False))
    save(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config and not loaded.config.summaries
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_settings_written_before_there_was_a_choice_of_summaries_have_them(tmp_path) -> None:
    save(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["summaries"]
    path.write_text(json.dumps(values))
    assert load_model(tmp_path).config.summaries


def test_run_step_and_model_folders_lead_to_the_model(tmp_path) -> None:
    run = tmp_path / "run"
    save(run / "checkpoints" / "step-9" / "model")
    save(run / "checkpoints" / "step-10" / "model")
    save(run / "checkpoints" / ".step-11" / "model")
    newest = run / "checkpoints" / "step-10" / "model"
    assert find_model_folder(run) == newest
    assert find_model_folder(run / "checkpoints" / "step-9") == newest.parents[1] / "step-9/model"
    assert find_model_folder(newest) == newest
    save(run / "model")
    assert find_model_folder(run) == run / "model"


def test_the_newest_run_is_one_that_holds_a_model(tmp_path) -> None:
    save(tmp_path / "old" / "model")
    save(tmp_path / "unfinished" / "checkpoints" / ".step-1" / "model")
    assert newest_run(tmp_path) == tmp_path / "old"
    with pytest.raises(CheckpointError, match="no run with a model"):
        newest_run(tmp_path / "unfinished")


def test_a_folder_without_a_model_is_refused_with_what_it_holds(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"found notes.txt; expected a run folder"):
        find_model_folder(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_model_folder(tmp_path / "absent")


def test_weights_of_another_size_are_refused(tmp_path) -> None:
    model = small_model()
    save_model(tmp_path, tiny_config(), model.state_dict())
    with pytest.raises(CheckpointError, match="another model size"):
        load_model(tmp_path)


def test_damaged_weights_are_refused(tmp_path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    for read in (load_model, model_metadata):
        with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
            read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: json.dumps(values)[:-9],
        lambda values: json.dumps([values]),
        lambda values: json.dumps({**values, "colour": "red"}),
        lambda values: json.dumps({k: v for k, v in values.items() if k != "width"}),
        lambda values: json.dumps({**values, "model_type": "llama"}),
    ],
)
def test_damaged_settings_are_refused(damage, tmp_path) -> None:
    save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)


def test_the_fingerprint_is_that_of_the_weights(tmp_path: Path) -> None:
    model = MuseFormer(tiny_config())
    for name in ("one", "same", "other"):
        if name == "other":
            model.final_norm.weight.data[0] += 1e-3
        save_model(tmp_path / name, model.config, model.state_dict())
    one, same, other = (model_fingerprint(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other and len(one) == 64
    with pytest.raises(CheckpointError, match=r"nowhere/model\.safetensors: cannot be read"):
        model_fingerprint(tmp_path / "nowhere")
