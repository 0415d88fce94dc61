from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from meloformer.errors import CheckpointError
from meloformer.model import weights
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.vocabulary import fingerprint
from meloformer.training import saving
from meloformer.training.checkpoint import MODEL_NAME
from meloformer.training.ranks import Ranks
from meloformer.training.saving import export_model, is_exported, read_state
from tests.layouts import tiny_config
from tests.training.test_checkpoint import STATE

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def engine() -> SimpleNamespace:
    model = MuseFormer(tiny_config())
    return SimpleNamespace(
        ranks=ALONE, has_average=False, each_weight=lambda: model.state_dict().items()
    )


def export(run: Path, step: int) -> Path:
    return export_model(engine(), run, tiny_config(), step)  # type: ignore[arg-type]


def die_after(save: Callable) -> Callable:
    def save_and_die(folder: Path, *arguments: object) -> None:
        save(folder, *arguments)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    return save_and_die


def test_an_export_that_dies_half_way_leaves_the_model_before_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights.load_weights(export(tmp_path, 3))
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_model", die_after(weights.save_model))
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path, 6)
    after = weights.load_weights(weights.find_model_folder(tmp_path))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert is_exported(tmp_path, 3) and not is_exported(tmp_path, 6)
    export(tmp_path, 6)
    assert is_exported(tmp_path, 6)
    assert [path.name for path in tmp_path.iterdir()] == [MODEL_NAME]


@pytest.mark.parametrize("found", ["u" * 64, None])
def test_a_checkpoint_whose_weights_name_another_vocabulary_is_refused(
    found: str | None, tmp_path: Path
) -> None:
    replace(STATE, tokenizer_fingerprint=fingerprint()).save(tmp_path)
    facts = {"tokenizer": found} if found else None
    weights.save_model(tmp_path / MODEL_NAME, tiny_config(), dict(engine().each_weight()), facts)
    with pytest.raises(
        CheckpointError, match=rf"found .*(uuu|none), expected {fingerprint()[:12]}"
    ):
        read_state(ALONE, tmp_path, STATE.run_id)
