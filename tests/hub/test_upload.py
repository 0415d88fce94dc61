"""Uploads, by the real client, to a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from meloformer.hub import HIDTokenizer, MuseFormerConfig, MuseFormerForCausalLM
from meloformer.hub.export import export_folder
from tests.hub.folders import a_model, write_model
from tests.hub.local_hub import LocalHub, running_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def test_a_model_goes_up_with_vocabulary_and_card_in_one_commit(hub, tmp_path) -> None:
    source = write_model(tmp_path / "run" / "model", a_model())
    folder = export_folder(source, tmp_path / "mine", licence="mit").folder
    model = MuseFormerForCausalLM.from_pretrained(folder)
    model.push_to_hub("owner/name", private=True, token="t", commit_message="first")
    assert hub.messages == ["first"]
    assert hub.repositories[0]["visibility"] == "private"
    # The card is ours, not one of a template.
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_went_up_loads_again(hub, tmp_path) -> None:
    model = MuseFormerForCausalLM.of(a_model(), {"step": "3"})
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="owner/name", token="t")
    down = tmp_path / "down"
    down.mkdir()
    for name, content in hub.files.items():
        (down / name).write_bytes(content)
    assert MuseFormerForCausalLM.from_pretrained(down).facts["step"] == "3"


def test_settings_and_vocabulary_go_up_alone(hub, tmp_path: Path) -> None:
    MuseFormerConfig.of(a_model().config).push_to_hub("owner/name", token="t")
    assert set(hub.files) == {"config.json"}
    HIDTokenizer().push_to_hub("owner/name", token="t")
    assert set(hub.files) == {"hid_vocabulary.json", "tokenizer_config.json"}
