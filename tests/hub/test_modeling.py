"""The classes that transformers knows, against MuseFormer itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling

from meloformer.batches.collate import collate_rows
from meloformer.errors import (
    CheckpointError,
    ConfigError,
    GenerationError,
    TokenError,
)
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.hub import HIDTokenizer, MuseFormerConfig, MuseFormerForCausalLM
from meloformer.midi.render import to_piece
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES, HeadGroup, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.model.weights import load_model, save_model
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import BOS, PAD, VOCAB_SIZE
from tests.hub.folders import a_model, a_piece, some_ids, write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model", a_model())


@pytest.fixture(scope="module")
def model(folder: Path) -> MuseFormerForCausalLM:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(loaded, MuseFormerForCausalLM) and not loaded.training
    return loaded


def padded(*rows: np.ndarray) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (length - len(row))] for row in rows])


def own_logits(model: MuseFormer, rows: list[list[np.ndarray]], length: int) -> torch.Tensor:
    batch = collate_rows(rows, length)
    layout = batch.layout if model.config.summaries else batch.layout.without_summaries()
    with torch.no_grad():
        return model(batch.ids_BT, batch.layout, build_plan(layout, rule_of(model.config.rule)))


def test_logits_are_those_of_the_model_to_the_last_bit(folder, model) -> None:
    long, short = some_ids(7), some_ids(3, seed=1)
    with torch.no_grad():
        found = model(padded(long, short)).logits
    expected = own_logits(load_model(folder), [[long], [short]], 128 * (1 + len(long) // 128))
    assert found.shape == (2, len(long), expected.shape[-1])
    assert torch.equal(found, expected[:, : len(long)])


@pytest.mark.parametrize("bars", [140])
def test_more_bars_than_such_a_row_has_slots_for_are_no_trouble(model, bars) -> None:
    ids = np.array([BOS, *some_ids(1)[1:-1][:3].tolist(), *[4] * bars])
    whole = padded(ids)
    assert model(whole).logits.shape[1] == len(ids)


def test_pieces_in_one_row_do_not_read_each_other(model) -> None:
    first, second = some_ids(2), some_ids(2, seed=3)
    with torch.no_grad():
        together = model(padded(np.concatenate([first, second]))).logits[0, len(first) :]
        alone = model(padded(second)).logits[0]
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_loss_counts_every_token_but_first_ones_and_padding(model) -> None:
    rows = [some_ids(3), some_ids(2, seed=1)]
    ids = padded(*rows)
    labels = ids.masked_fill(ids == PAD, -100)
    with torch.no_grad():
        found = model(ids, labels=labels)
        nats = [
            F.cross_entropy(logits[: len(row) - 1], torch.from_numpy(row[1:]), reduction="sum")
            for logits, row in zip(found.logits, rows, strict=True)
        ]
        count = sum(len(row) - 1 for row in rows)
        assert torch.allclose(found.loss, sum(nats) / count)
        # Padding is never a target, whether labels say so or not.
        assert torch.equal(model(ids, labels=ids).loss, found.loss)
        halves = model(ids, labels=labels, num_items_in_batch=2 * count).loss
        assert torch.allclose(halves, found.loss / 2)
        labels[:, 5:] = -100
        first = F.cross_entropy(found.logits[:, :4].flatten(0, 1), ids[:, 1:5].flatten())
        assert torch.allclose(model(ids, labels=labels).loss, first)
        packed = padded(np.concatenate(rows))
        assert torch.allclose(model(packed, labels=packed).loss, found.loss, atol=1e-5)


def test_a_gradient_reaches_every_parameter_through_collated_music() -> None:
    model = MuseFormerForCausalLM.of(a_model())
    tokenizer = HIDTokenizer()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = collate([{"input_ids": tokenizer.encode(a_piece(bars))} for bars in (2, 3)])
    model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_attention_mask_tells_padding_as_well_as_pad_does(model) -> None:
    ids = padded(some_ids(3), some_ids(2, seed=1))
    mask = (ids != PAD).long()
    other = ids.masked_fill(ids == PAD, 500)
    with torch.no_grad():
        assert torch.equal(model(other, attention_mask=mask).logits, model(ids).logits)


def test_ids_that_are_no_rows_are_refused_by_row_and_place(model) -> None:
    ids = some_ids(2)
    for wrong, message in (
        (padded(np.array([PAD, *ids])), "padding before tokens"),
        (padded(ids[1:]), "every piece begins"),
        (padded(np.array([*ids, VOCAB_SIZE])), f"found id {VOCAB_SIZE}"),
        (padded(ids).float(), "allowed: integers"),
        (padded(ids)[0], "allowed: integers"),
    ):
        with pytest.raises(TokenError, match=message):
            model(wrong)


def test_labels_of_another_shape_are_refused(model) -> None:
    ids = padded(some_ids(3))
    for labels in (ids[:, :5], torch.cat([ids, ids]), ids[0], torch.cat([ids, ids], dim=1)):
        with pytest.raises(TokenError, match=r"labels of shape"):
            model(ids, labels=labels)
    with pytest.raises(TokenError, match=r"labels of shape"):
        model(torch.cat([ids, ids]), labels=ids)


def test_a_card_that_is_no_text_and_a_choice_of_attention_are_no_trouble(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_bytes(b"caf\xe9")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    assert found.card.startswith("caf")


@pytest.mark.parametrize(
    "rule", ["museformer", (HeadGroup(True, (0, 3)), HeadGroup(False, None))], ids=str
)
def test_a_folder_comes_back_as_it_was_and_serves_the_recipes(rule, tmp_path) -> None:
    model = MuseFormerForCausalLM.of(a_model(rule=rule, open_summary_rate=0.3), {"step": "12"})
    model.card = "---\nlicense: mit\n---\n"
    model.save_pretrained(tmp_path)
    again = MuseFormerForCausalLM.from_pretrained(tmp_path)
    assert again.settings == model.settings == again.config.model
    assert (again.facts["step"], again.card) == ("12", model.card)
    ids = padded(some_ids(3))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    ours = load_model(tmp_path)
    assert ours.config == model.settings
    assert all(
        torch.equal(v, model.museformer.state_dict()[k]) for k, v in ours.state_dict().items()
    )


def test_what_a_run_wrote_is_saved_again_byte_for_byte(folder, model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_half_precision_is_kept_and_can_be_asked_for(folder, tmp_path) -> None:
    half = MuseFormerForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    assert MuseFormerForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_the_twin_without_summaries_gives_its_own_logits() -> None:
    twin = a_model(summaries=False, rule="full")
    ids = some_ids(3)
    with torch.no_grad():
        found = MuseFormerForCausalLM.of(twin)(padded(ids)).logits
    expected = own_logits(twin, [[ids]], 128 * (1 + len(ids) // 128))[:, : len(ids)]
    assert torch.equal(found, expected)


def test_a_piece_is_the_one_that_the_recipe_samples(folder, model) -> None:
    (ids,) = generate(
        load_model(folder),
        ControlConfig(bars=2, tempo=120.0, instruments=("0", "drums")),
        SamplingConfig(top_k=5),
        seed=3,
    )
    wishes = {"bars": 2, "tempo": 120, "instruments": [0, "drums"], "top_k": 5}
    piece = model.generate_piece(seed=3, **wishes)
    assert piece == to_piece(decode(ids))
    assert model.generate_pieces(2, seed=3, **wishes)[0] == piece


def test_wishes_and_ways_that_cannot_be_are_refused(model) -> None:
    with pytest.raises(GenerationError, match=r"tempi.*allowed: .*tempo"):
        model.generate_piece(tempi=120)
    with pytest.raises(GenerationError, match="generate_piece"):
        model.generate(padded(some_ids(1)), max_new_tokens=5)
    with pytest.raises(GenerationError, match="0 pieces"):
        model.generate_pieces(0)


def test_foreign_weights_and_settings_are_refused(folder, tmp_path) -> None:
    model = a_model()
    state = model.state_dict()
    save_model(tmp_path / "vocabulary", model.config, state, {"tokenizer": "0" * 64})
    with pytest.raises(TokenError, match="another vocabulary"):
        MuseFormerForCausalLM.from_pretrained(tmp_path / "vocabulary")
    state.pop("final_norm.weight")
    write_model(tmp_path / "missing", model)
    save_model(tmp_path / "missing", model.config, state, load_facts(folder))
    with pytest.raises(CheckpointError, match=r"final_norm\.weight"):
        MuseFormerForCausalLM.from_pretrained(tmp_path / "missing")
    with pytest.raises(ConfigError, match="unknown colour"):
        MuseFormerConfig(**MuseFormerConfig.of(model.config).to_dict(), colour="red")
    with pytest.raises(ConfigError, match="missing"):
        MuseFormerConfig(width=64)


def load_facts(folder: Path) -> dict[str, str]:
    return MuseFormerForCausalLM.of_folder(folder).facts


def test_settings_have_the_names_of_transformers_too(model) -> None:
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers) == (32, 2)
    assert config.model.rule in RULES


@pytest.mark.slow
def test_a_fresh_process_loads_by_the_auto_classes_without_foreign_code(folder, tmp_path) -> None:
    HIDTokenizer().save_pretrained(tmp_path)
    MuseFormerForCausalLM.of_folder(folder).save_pretrained(tmp_path)
    code = (
        "import meloformer.hub; from transformers import AutoConfig, AutoModelForCausalLM, "
        f"AutoTokenizer; f = {str(tmp_path)!r}; "
        "print(*(type(auto.from_pretrained(f)).__name__ for auto in "
        "(AutoConfig, AutoModelForCausalLM, AutoTokenizer)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["MuseFormerConfig", "MuseFormerForCausalLM", "HIDTokenizer"]
