"""Attribute heads: what they make of states, whatever the batch, and how they are kept."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from meloformer.bridge.attribute_heads import (
    GATES,
    HEADS_NAME,
    NUM_INSTRUMENTS,
    NUM_VALUES,
    AttributeHeads,
    AttributeHeadsConfig,
    HeadLogits,
    SaidAttributes,
    load_heads,
    most_likely,
    save_heads,
)
from meloformer.bridge.text_encoder import TextStates
from meloformer.errors import CheckpointError
from meloformer.tokens.attributes import Attributes

WIDTH = 24


def random_states(lengths: list[int], seed: int = 0) -> TextStates:
    torch.manual_seed(seed)
    return TextStates.of_rows([(torch.randn(n, WIDTH), torch.randn(WIDTH)) for n in lengths])


def random_heads(seed: int = 0) -> AttributeHeads:
    torch.manual_seed(seed)
    config = AttributeHeadsConfig(text_width=WIDTH, encoder_fingerprint="f" * 64, width=32)
    return AttributeHeads(config).eval()


class SaidHeads(AttributeHeads):
    """Heads whose answer is given, to try what is made of it."""

    answer: HeadLogits

    def forward(self, states: TextStates) -> HeadLogits:
        return self.answer


def said(
    gates: set[str], values: Mapping[str, int] = {}, instruments: tuple[int, ...] = ()
) -> SaidAttributes:
    """What `predict` makes of gates that are open and of values that are sure."""
    heads = SaidHeads(AttributeHeadsConfig(text_width=WIDTH, encoder_fingerprint="f"))
    logits = {name: torch.zeros(1, count) for name, count in NUM_VALUES.items()}
    for name, value in values.items():
        logits[name][0, value] = 50.0
    naming = torch.full((1, NUM_INSTRUMENTS), -5.0)
    naming[0, 40] = -1.0  # the clearest of none
    naming[0, list(instruments)] = 5.0
    is_open = [[5.0 if name in gates else -5.0 for name in GATES]]
    heads.answer = HeadLogits(torch.tensor(is_open), logits, naming)
    (found,) = heads.predict(random_states([3]))
    return found


def assert_equal_logits(found: HeadLogits, expected: HeadLogits) -> None:
    pairs = [(found.values[name], expected.values[name]) for name in NUM_VALUES]
    pairs += [(found.gates_BA, expected.gates_BA), (found.instruments_BI, expected.instruments_BI)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def rows_of(logits: HeadLogits, row: int) -> HeadLogits:
    only = slice(row, row + 1)
    values = {name: value[only] for name, value in logits.values.items()}
    return HeadLogits(logits.gates_BA[only], values, logits.instruments_BI[only])


def test_a_text_alone_is_answered_as_in_a_batch() -> None:
    heads, lengths = random_heads(), [3, 9, 1]
    together = random_states(lengths)
    logits = heads(together)
    for row, length in enumerate(lengths):
        alone = TextStates(
            together.states_BLW[row : row + 1, :length],
            together.mask_BL[row : row + 1, :length],
            together.pooled_BW[row : row + 1],
        )
        assert_equal_logits(heads(alone), rows_of(logits, row))


@pytest.mark.parametrize("garbage", [7.0, float("nan")])
def test_what_stands_in_padding_changes_nothing(garbage: float) -> None:
    heads, states = random_heads(), random_states([3, 9])
    filled = states.states_BLW.masked_fill(~states.mask_BL[..., None], garbage)
    other = TextStates(filled, states.mask_BL, states.pooled_BW)
    assert_equal_logits(heads(other), heads(states))


def test_padding_on_the_left_is_answered_as_on_the_right() -> None:
    heads, states = random_heads(), random_states([4, 9])
    turned = [
        row_LW.roll(int((~mask_L).sum()), 0)
        for row_LW, mask_L in zip(states.states_BLW, states.mask_BL, strict=True)
    ]
    left = TextStates(torch.stack(turned), states.mask_BL.flip(1), states.pooled_BW)
    assert not left.mask_BL[0, 0] and left.mask_BL[0, -1]
    assert_equal_logits(heads(left), heads(states))


def test_the_size_of_an_encoders_states_changes_nothing() -> None:
    heads, states = random_heads(), random_states([4, 9])
    larger = TextStates(states.states_BLW * 100, states.mask_BL, states.pooled_BW)
    found, expected = heads(larger), heads(states)
    torch.testing.assert_close(found.gates_BA, expected.gates_BA, atol=1e-3, rtol=0)


def test_states_in_bfloat16_are_taken() -> None:
    states = random_states([4, 9]).to("cpu", torch.bfloat16)
    assert random_heads()(states).gates_BA.dtype == torch.float32


def test_what_a_text_does_not_say_stays_free() -> None:
    everything = dict.fromkeys(NUM_VALUES, 1)
    assert said(set(), everything, instruments=(1, 5)) == SaidAttributes(Attributes())


def test_what_a_text_says_is_told_in_the_words_of_a_prefix() -> None:
    found = said(
        {"metre", "tempo", "key", "instruments", "all_instruments"},
        {"metre": 12, "tempo": 40, "key": 16, "length": 3},
        instruments=(1, 34),
    )
    attributes = Attributes(metre=12, tempo=40, key=16, instruments=(1, 34))
    assert found == SaidAttributes(attributes, are_all_instruments=True)


def test_the_clearest_instrument_is_taken_where_the_gate_has_heard_a_name() -> None:
    assert said({"instruments"}).attributes.instruments == (40,)


@pytest.mark.parametrize(
    ("drums", "named", "expected"),
    [
        (1, (1,), (0, 1)),
        (1, (), (0,)),
        (0, (0, 1), (1,)),
        (0, (), ()),
    ],
)
def test_drums_that_are_said_or_denied_join_or_leave_the_instruments(
    drums: int, named: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    gates = {"drums", *(["instruments"] if named else [])}
    found = said(gates, {"drums": drums}, named)
    assert found.attributes.instruments == expected
    assert found.has_drums is bool(drums) and not found.are_all_instruments


def test_of_a_number_the_middle_of_its_spread_is_taken() -> None:
    """Likeliest is the first bin, and three quarters of the weight lie far above it."""
    spread = torch.tensor([[0.25, 0.0, 0.0, 0.0, 0.2, 0.2, 0.15, 0.2]]).clamp(min=1e-9).log()
    for name in ("tempo", "length", "density"):
        assert most_likely(name, spread).tolist() == [5]
    for name in ("metre", "key", "drums"):
        assert most_likely(name, spread).tolist() == [0]


def test_saved_heads_answer_as_before(tmp_path: Path) -> None:
    heads, states = random_heads(), random_states([4, 9])
    save_heads(tmp_path, heads)
    loaded = load_heads(tmp_path, encoder_fingerprint="f" * 64)
    assert [path.name for path in tmp_path.iterdir()] == [HEADS_NAME]
    assert loaded.config == heads.config and not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert_equal_logits(loaded(states), heads(states))
    assert loaded.predict(states) == heads.predict(states)


def test_heads_of_another_encoder_are_refused(tmp_path: Path) -> None:
    save_heads(tmp_path, random_heads())
    with pytest.raises(CheckpointError, match=r"found heads for the text encoder ffffffffffff"):
        load_heads(tmp_path, encoder_fingerprint="e" * 64)


def test_heads_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_heads(tmp_path)
    save_heads(tmp_path, random_heads())
    path = tmp_path / HEADS_NAME
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    narrower = json.dumps({**json.loads(header["config"]), "width": 16})
    for changed in (
        {"vocabulary": "0" * 64},
        {"heads_format": "2"},
        {"config": "{}"},
        {"config": narrower},
    ):
        save_file(state, path, {**header, **changed})
        with pytest.raises(CheckpointError) as refusal:
            load_heads(tmp_path)
        assert "\n" not in str(refusal.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_heads(tmp_path)
