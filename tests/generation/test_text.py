"""From texts and pieces to what a small model is given to write from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from meloformer.bridge.attribute_heads import (
    GATES,
    NUM_VALUES,
    AttributeHeads,
    AttributeHeadsConfig,
    SaidAttributes,
    save_heads,
)
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_encoder import TextEncoder
from meloformer.errors import CheckpointError, GenerationError, MeloFormerError
from meloformer.generation.controls import NOTHING, ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.text import (
    InjectingConfig,
    Order,
    TextConfig,
    order_of_summaries,
    orders_of,
    understood,
)
from meloformer.midi import grid
from meloformer.midi.render import to_piece
from meloformer.midi.write import write_midi
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.attributes import Attributes
from meloformer.tokens.hid import decode
from tests.bridge.bases import random_base
from tests.bridge.bridge_folders import write_bridge
from tests.bridge.text_encoders import WIDTH, write_qwen3
from tests.midi.pieces import canonical_piece

BASE_WIDTH = 32
FINGERPRINT = "f" * 64
# More than so many bars are joined from windows.
NUM_QUERIES = 24
SAID = Attributes(metre=grid.METRE_INDEX[(3, 4)], tempo=9, key=4, instruments=(1, 41))


@pytest.fixture(scope="module")
def base() -> MuseFormer:
    return random_base(width=BASE_WIDTH, ffn_width=32, open_summary_rate=0.3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return TextEncoder.load(write_qwen3(tmp_path_factory.mktemp("encoder")))


def write_run(folder: Path, kind: type[nn.Module], config: type, encoder: TextEncoder) -> Path:
    shape: dict[str, Any] = {
        "text_width": WIDTH,
        "summary_width": BASE_WIDTH,
        "num_queries": NUM_QUERIES,
        "width": 32,
        "num_layers": 2,
        "num_heads": 2,
        "ffn_width": 64,
    }
    facts = {"fingerprint": FINGERPRINT, "width": BASE_WIDTH}
    write_bridge(folder / "model", kind(config(**shape)), encoder, facts)
    return folder


def heads_that_say(said: Attributes, encoder: TextEncoder) -> AttributeHeads:
    """Heads that hear the same in every text, and that its instruments are all that play."""
    heads = AttributeHeads(
        AttributeHeadsConfig(text_width=WIDTH, encoder_fingerprint=encoder.fingerprint, width=8)
    )
    told = {name: getattr(said, name, None) for name in NUM_VALUES}
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.zero_()
        for gate, value in zip(heads.value_gates, told.values(), strict=True):
            gate.bias.fill_(-5.0 if value is None else 5.0)
        for name, value in told.items():
            if value is not None:
                heads.values[name].bias[value] = 50.0
        heads.instrument_gates.bias.fill_(5.0 if said.instruments else -5.0)
        heads.naming.bias.fill_(-50.0)
        heads.naming.bias[list(said.instruments)] = 50.0
    assert len(heads.instrument_gates.bias) == len(GATES) - len(NUM_VALUES)
    return heads


@pytest.fixture(scope="module")
def qformer_run(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> Path:
    """With heads that say SAID of every text."""
    folder = write_run(tmp_path_factory.mktemp("qformer"), QFormer, QFormerConfig, encoder)
    save_heads(folder / "model", heads_that_say(SAID, encoder))
    return folder


@pytest.fixture(scope="module")
def diffusion_run(tmp_path_factory: pytest.TempPathFactory, encoder: TextEncoder) -> Path:
    """Without heads."""
    folder = tmp_path_factory.mktemp("diffusion")
    return write_run(folder, DiffusionBridge, DiffusionBridgeConfig, encoder)


def orders(
    config: TextConfig, base: MuseFormer, controls: ControlConfig | None = None, **settings: int
) -> list[Order]:
    return orders_of(config, controls or ControlConfig(), base, FINGERPRINT, **settings)


def summaries(order: Order) -> torch.Tensor:
    """(B, S, D) that a piece is written on."""
    assert order.injection is not None and order.injection.mask_BS.all()
    return order.injection.summaries_BSD


RUN = Path("runs/bridge")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"text": ("calm",)}, "--text without --bridge: allowed"),
        ({"prompts": Path("a.txt")}, "--text without --bridge: allowed"),
        ({"text": ("a", " "), "bridge": RUN}, "--text '': found an empty text; allowed"),
        (
            {"text": ("a",), "bridge": RUN, "mix": (Path("a"), Path("b")), "at": "0:0"},
            "--text and --mix at once: allowed: one of --text, --prompts",
        ),
        ({"text": ("a",), "prompts": Path("a.txt")}, "--text and --prompts at once"),
        ({"mix": (Path("a.mid"),), "at": "0:0"}, "--mix with 1 files .* allowed: two"),
        ({"mix": (Path("a.mid"), Path("b.mid"))}, "--mix with 2 files and --at None: allowed"),
        ({"at": "0:0"}, "--at 0:0 without --mix: allowed"),
        ({"bridge": RUN}, "--bridge without a text: allowed"),
        ({"strict": True}, "--strict with nothing .* allowed"),
        (
            {"text": ("a",), "bridge": RUN, "strict": True, "attributes": False},
            "--strict with nothing .* without --no_attributes",
        ),
        ({"crossfade": -1}, "--crossfade -1: allowed 0 or more"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_in_one_line(flags, said) -> None:
    with pytest.raises(GenerationError, match=said) as refusal:
        TextConfig(**flags)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"strategy": "adapter"}, "--strategy adapter: .* allowed: replace, blend"),
        ({"alpha": 1.5}, "--alpha 1.5: allowed 0 to 1"),
        ({"alpha": float("nan")}, "--alpha nan: allowed 0 to 1"),
    ],
)
def test_an_injection_that_cannot_be_is_refused_in_one_line(flags, said) -> None:
    with pytest.raises(GenerationError, match=said) as refusal:
        InjectingConfig(**flags)
    assert "\n" not in str(refusal.value)


def test_prompts_are_the_lines_of_a_file_that_say_something(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    config = TextConfig(prompts=path, bridge=RUN)
    with pytest.raises(GenerationError, match="cannot be read"):
        config.texts()
    path.write_text("  calm piano\n\nE小调的快速摇滚\n", encoding="utf-8")
    assert config.texts() == ("calm piano", "E小调的快速摇滚")
    path.write_text("\n \n")
    with pytest.raises(GenerationError, match="found no text; allowed: one a line"):
        config.texts()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GenerationError, match="cannot be read"):
        config.texts()


def test_without_a_text_the_model_writes_freely_whatever_it_was_trained_for() -> None:
    (order,) = orders(TextConfig(), random_base(num_layers=1), ControlConfig(bars=3))
    assert order.injection is None and order.told == NOTHING
    assert order.controls == ControlConfig(bars=3)


def test_each_text_is_a_piece_and_a_text_is_answered_as_if_it_were_alone(base, qformer_run) -> None:
    both = orders(TextConfig(text=("calm", "loud"), bridge=qformer_run), base)
    (alone,) = orders(TextConfig(text=("loud",), bridge=qformer_run), base)
    assert [order.title for order in both] == ["calm", "loud"]
    assert summaries(both[0]).shape == (1, 16, BASE_WIDTH), "16 bars unless asked for others"
    torch.testing.assert_close(summaries(both[1]), summaries(alone))
    assert not torch.allclose(summaries(both[0]), summaries(both[1]))


def test_sections_have_their_own_texts_and_fade_between_them(base, qformer_run) -> None:
    texts = ("0-5: calm", "6-11: loud")
    config = TextConfig(text=texts, bridge=qformer_run, crossfade=2)
    (order,) = orders(config, base)
    asked = ControlConfig(bars=12)
    calm, loud = orders(TextConfig(text=("calm", "loud"), bridge=qformer_run), base, asked)
    assert order.title == "calm; loud" and order.controls.num_bars == 12
    found, first, second = (summaries(one)[0] for one in (order, calm, loud))
    torch.testing.assert_close(found[:5], first[:5])
    torch.testing.assert_close(found[7:], second[7:])
    torch.testing.assert_close(found[5], 0.75 * first[5] + 0.25 * second[5])


def test_a_bridge_of_another_model_is_refused(base, qformer_run) -> None:
    config = TextConfig(text=("calm",), bridge=qformer_run)
    with pytest.raises(
        CheckpointError, match="found a bridge to the model ffffffffffff"
    ) as refusal:
        orders_of(config, ControlConfig(), base, "e" * 64)
    assert "\n" not in str(refusal.value)


def test_a_model_that_never_read_a_summary_is_refused_before_anything_is_loaded() -> None:
    closed = random_base(num_layers=1)
    for config in (
        TextConfig(text=("calm",), bridge=Path("absent")),
        TextConfig(summaries_from=Path("absent.mid")),
    ):
        with pytest.raises(GenerationError, match="--open_summary_rate 0, which"):
            orders(config, closed)


def test_what_a_text_says_is_told_and_kept_only_with_strict(base, qformer_run) -> None:
    config = TextConfig(text=("in three",), bridge=qformer_run)
    (told,) = orders(config, base)
    assert told.told == SAID and told.controls == ControlConfig(bars=16)
    (untold,) = orders(replace(config, attributes=False), base)
    assert untold.told == NOTHING
    assert torch.equal(summaries(told), summaries(untold))

    (strict,) = orders(replace(config, strict=True), base, ControlConfig(bars=1))
    (ids,) = generate(
        base, strict.controls, SamplingConfig(), injection=strict.injection, told=strict.told
    )
    piece = decode(ids)
    assert {grid.METRES[index] for index in piece.bar_metre} == {(3, 4)}
    assert set(piece.bar_tempo) == {SAID.tempo} and set(piece.instrument) <= {1, 41}


def test_flags_of_the_users_own_come_before_what_a_text_says(base, qformer_run) -> None:
    config = TextConfig(text=("in three",), bridge=qformer_run, strict=True)
    own = ControlConfig(bars=3, time_signature="4/4", instruments=("drums",))
    (order,) = orders(config, base, own)
    assert order.controls.time_signature == "4/4" and order.controls.instruments == ("drums",)
    assert order.controls.tempo_index == SAID.tempo and order.controls.key_index == SAID.key
    prefix = order.controls.prefix(order.told)
    assert np.array_equal(prefix, order.controls.prefix()), "nothing else is told than is kept"
    # Without --strict as well.
    (loose,) = orders(replace(config, strict=False), base, own)
    assert np.array_equal(loose.controls.prefix(loose.told), prefix)


def test_strict_with_a_bridge_that_reads_no_attributes_is_refused(base, diffusion_run) -> None:
    config = TextConfig(text=("calm",), bridge=diffusion_run, strict=True)
    with pytest.raises(GenerationError, match=r"--strict with --bridge .* no attribute heads"):
        orders(config, base)


def test_instruments_are_told_only_where_those_named_are_all_that_play() -> None:
    assert understood(SaidAttributes(SAID, are_all_instruments=True)) == SAID
    assert understood(SaidAttributes(SAID)) == replace(SAID, instruments=())


def test_more_bars_than_a_bridge_gives_at_once_are_joined(base, qformer_run) -> None:
    def ask(bars: int) -> torch.Tensor:
        config = TextConfig(text=("calm",), bridge=qformer_run)
        (order,) = orders(config, base, ControlConfig(bars=bars))
        return summaries(order)[0]

    once, long = ask(NUM_QUERIES), ask(70)
    assert long.shape == (70, BASE_WIDTH) and long.isfinite().all()
    # A window begins every 12 bars, and the next one fades in from there on.
    torch.testing.assert_close(long[:12], once[:12])
    torch.testing.assert_close(long[12], (12 * once[12] + once[0]) / 13)


def test_samples_of_a_diffusion_bridge_differ_and_repeat_with_the_seed(base, diffusion_run) -> None:
    def ask(bars: int = 4, **settings: int) -> torch.Tensor:
        config = TextConfig(text=("calm",), bridge=diffusion_run)
        (order,) = orders(config, base, ControlConfig(bars=bars), **settings)
        return summaries(order)

    three = ask(num_samples=3, seed=5)
    assert three.shape == (3, 4, BASE_WIDTH)
    for row in range(3):
        assert not torch.allclose(three[row], three[(row + 1) % 3])
    assert torch.equal(three, ask(num_samples=3, seed=5))
    torch.testing.assert_close(three[:1], ask(num_samples=1, seed=5))
    assert not torch.allclose(three, ask(num_samples=3, seed=6))


def test_windows_of_a_long_text_are_draws_of_their_own(base, diffusion_run) -> None:
    config = TextConfig(text=("calm",), bridge=diffusion_run)
    (order,) = orders(config, base, ControlConfig(bars=3 * NUM_QUERIES))
    (found,) = summaries(order)
    # Windows are 12 bars apart; alike they would make the piece repeat itself from bar 12 on.
    assert not torch.allclose(found[12:24], found[24:36], atol=1e-3)


@pytest.fixture(scope="module")
def midi_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pieces of 3 and of 5 bars."""
    folder = tmp_path_factory.mktemp("midi")
    for bars in (3, 5):
        notes = [(bar, 1, 0, 60 + bars * bar, 24, 66) for bar in range(bars)]
        piece = canonical_piece([SAID.metre] * bars, [40] * bars, notes)
        write_midi(to_piece(piece), folder / f"{bars}.mid")
    return sorted(folder.iterdir())


def test_a_piece_lends_its_summaries_and_a_mixture_goes_from_one_to_the_other(
    base, midi_files
) -> None:
    short, long = (orders(TextConfig(summaries_from=path), base)[0] for path in midi_files)
    assert (short.controls.num_bars, long.controls.num_bars) == (3, 5)
    assert short.title == "after 3.mid"
    (mixture,) = orders(TextConfig(mix=tuple(midi_files), at="0:0,2:1"), base)
    found, first, second = (summaries(order)[0] for order in (mixture, short, long))
    assert len(found) == 3 and mixture.title == "from 3.mid to 5.mid"
    torch.testing.assert_close(found[0], first[0])
    torch.testing.assert_close(found[1], (first[1] + second[1]) / 2)
    torch.testing.assert_close(found[2], second[2])


def test_a_piece_cannot_lend_more_bars_than_it_has(base, midi_files, tmp_path) -> None:
    config, asked = TextConfig(summaries_from=midi_files[0]), ControlConfig(bars=4)
    with pytest.raises(GenerationError, match="--bars 4: found summaries of 3 bars"):
        orders(config, base, asked)
    config = TextConfig(mix=tuple(midi_files), at="0:0")
    with pytest.raises(GenerationError, match="--bars 4 of a mixture: the shorter piece has 3"):
        orders(config, base, asked)


def test_a_file_that_is_no_midi_is_named_with_its_flag(base, midi_files, tmp_path) -> None:
    broken = tmp_path / "broken.mid"
    broken.write_bytes(b"no music")
    for config in (
        TextConfig(summaries_from=broken),
        TextConfig(summaries_from=tmp_path / "absent.mid"),
        TextConfig(mix=(midi_files[0], broken), at="0:0"),
    ):
        flag = "--mix" if config.mix else "--summaries_from"
        with pytest.raises(MeloFormerError, match=f"{flag} .*; allowed: a MIDI file") as refusal:
            orders(config, base)
        assert "\n" not in str(refusal.value)


def test_summaries_of_a_file_are_injected_as_they_are() -> None:
    summaries_SD = torch.randn(6, BASE_WIDTH)
    injecting = InjectingConfig(strategy="replace", alpha=0.25)
    order = order_of_summaries(injecting, ControlConfig(), summaries_SD, "a title")
    assert order.controls.num_bars == 6 and torch.equal(summaries(order)[0], summaries_SD)
    assert order.injection is not None
    assert (order.injection.strategy, order.injection.alpha) == ("replace", 0.25)
    fewer = order_of_summaries(injecting, ControlConfig(bars=2), summaries_SD, "a title")
    assert torch.equal(summaries(fewer)[0], summaries_SD[:2])
