"""From texts to what a small model is given to write from."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meloformer.bridge.attribute_heads import (
    SaidAttributes,
    save_heads,
)
from meloformer.bridge.qformer import QFormer, QFormerConfig
from meloformer.bridge.text_to_summaries import FlowConfig
from meloformer.errors import CheckpointError, GenerationError
from meloformer.generation.controls import NOTHING, ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.injecting import InjectingConfig
from meloformer.generation.sampling import SamplingConfig
from meloformer.generation.steering import CROSSFADE_BARS
from meloformer.generation.text import (
    Order,
    TextConfig,
    orders_of,
    understood,
)
from meloformer.midi import grid
from meloformer.model.injection import INJECTION_LAYER, Injection
from meloformer.tokens.attributes import read_prefix
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import length_bin
from tests.bridge.adapter_folders import write_adapter
from tests.bridge.bases import random_base
from tests.generation.steered_models import (
    BASE_WIDTH,
    FINGERPRINT,
    SAID,
    heads_that_say,
    orders,
    summaries,
    write_run,
)

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
        ({"mix": (Path("a.mid"),), "at": "0:0"}, "--mix with 1 file and --at 0:0: allowed: two"),
        ({"mix": (Path("a.mid"), Path("b.mid"))}, "--mix with 2 files and no --at: allowed"),
        ({"at": "0:0"}, "--at 0:0 without --mix: allowed"),
        ({"bridge": RUN}, "--bridge without a text: allowed"),
        ({"strict": True}, "--strict with nothing .* allowed"),
        (
            {"text": ("a",), "bridge": RUN, "strict": True, "attributes": False},
            "--strict with nothing .* without --no_attributes",
        ),
        ({"crossfade": -1}, "--crossfade -1: allowed 0 or more"),
        ({"crossfade": 2}, "--crossfade without a text: allowed: beside --text or --prompts"),
        ({"attributes": False}, "--no_attributes without a text: allowed"),
        ({"text_encoder": "minilm"}, "--text_encoder without a text: allowed"),
        ({"bridge_weights": "ema"}, "--bridge_weights without a text: allowed"),
        ({"flow": FlowConfig(steps=4)}, "--steps without a text: allowed"),
        (
            {"summaries_from": Path("a.mid"), "flow": FlowConfig(guidance=2.0)},
            "--guidance without a text: allowed",
        ),
        (
            {"injecting": InjectingConfig(strategy="replace")},
            "--strategy with nothing to inject: allowed: beside --text, --prompts, --summ",
        ),
        ({"injecting": InjectingConfig(alpha=0.7)}, "--alpha with nothing to inject: allowed"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_in_one_line(flags, said) -> None:
    with pytest.raises(GenerationError, match=said) as refusal:
        TextConfig(**flags)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"strategy": "adapter"}, "--strategy adapter without --adapter: allowed: the run of"),
        ({"adapter": RUN}, "--adapter runs/bridge with --strategy blend: allowed: beside"),
        ({"alpha": 1.5}, "--alpha 1.5: allowed 0 to 1"),
        ({"alpha": float("nan")}, "--alpha nan: allowed 0 to 1"),
    ],
)
def test_an_injection_that_cannot_be_is_refused_in_one_line(flags, said) -> None:
    with pytest.raises(GenerationError, match=said) as refusal:
        InjectingConfig(**flags)
    assert "\n" not in str(refusal.value)


def test_flags_that_say_what_is_so_anyway_are_no_fault_without_a_text() -> None:
    same = TextConfig(crossfade=CROSSFADE_BARS, injecting=InjectingConfig(strategy="blend"))
    assert same == TextConfig()
    lent = TextConfig(summaries_from=Path("a.mid"), injecting=InjectingConfig(alpha=0.2))
    assert lent.injecting.alpha == 0.2


def test_prompts_are_the_lines_of_a_file_that_say_something(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    config = TextConfig(prompts=path, bridge=RUN)
    with pytest.raises(GenerationError, match="cannot be read"):
        config.texts()
    path.write_text("  calm piano\n\nE小调的快速摇滚\n", encoding="utf-8")
    assert config.texts() == ("calm piano", "E小调的快速摇滚")
    path.write_text("0-1: calm\n2-3: loud\n", encoding="utf-8-sig")
    assert config.texts() == ("0-1: calm", "2-3: loud"), "editors begin a file with a mark"
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


def test_answers_enter_where_their_bridge_was_trained_to_speak_and_lent_summaries_where_taken(
    base, encoder, qformer_run, midi_files, tmp_path
) -> None:
    soft = write_run(tmp_path / "soft", QFormer, QFormerConfig, encoder, layer=0)
    configs = [TextConfig(text=("calm",), bridge=run) for run in (qformer_run, soft)]
    found = [orders(config, base)[0] for config in configs]
    found += orders(TextConfig(summaries_from=midi_files[0]), base)
    injections = [order.injection for order in found if order.injection]
    assert [one.layer for one in injections] == [INJECTION_LAYER, 0, INJECTION_LAYER]
    controls = ControlConfig(bars=1, instruments=("0",))
    at_the_input, later = (
        generate(base, controls, SamplingConfig(), seed=0, injection=injection)[0]
        for injection in (injections[1], replace(injections[1], layer=1))
    )
    assert not np.array_equal(at_the_input, later), "and the layer is heard"


def test_a_blend_weighs_answers_as_their_bridge_was_trained_unless_a_flag_says_otherwise(
    base, encoder, midi_files, tmp_path
) -> None:
    run = write_run(tmp_path / "run", QFormer, QFormerConfig, encoder, token_loss_alpha=0.25)
    plain = write_run(tmp_path / "plain", QFormer, QFormerConfig, encoder)

    def alpha(alpha: float | None = None, **flags: Any) -> float:
        config = TextConfig(injecting=InjectingConfig(alpha=alpha), **flags)
        (order,) = orders(config, base, ControlConfig(bars=2))
        assert order.injection is not None and order.injection.strategy == "blend"
        return order.injection.alpha

    by_text: dict[str, Any] = {"text": ("calm",), "bridge": run}
    assert alpha(**by_text) == 0.25
    assert alpha(0.9, **by_text) == 0.9 and alpha(0.0, **by_text) == 0.0
    assert alpha(**{**by_text, "bridge": plain}) == Injection.alpha
    assert alpha(summaries_from=midi_files[0]) == Injection.alpha


def test_an_adapter_says_what_becomes_of_a_texts_summaries_and_of_lent_ones(
    base, qformer_run, diffusion_run, midi_files, tmp_path
) -> None:
    run = write_adapter(tmp_path / "adapter", qformer_run)
    injecting = InjectingConfig(strategy="adapter", adapter=run)
    by_text = TextConfig(text=("calm",), bridge=qformer_run, injecting=injecting)
    lent = TextConfig(summaries_from=midi_files[0], injecting=injecting)
    for config in (by_text, lent):
        (adapted,), (blended,) = (
            orders(one, base) for one in (config, replace(config, injecting=InjectingConfig()))
        )
        assert adapted.injection and adapted.injection.strategy == "adapter"
        assert torch.equal(summaries(adapted), summaries(blended))
        controls = ControlConfig(bars=8, instruments=("0",))
        first, second = (
            generate(base, controls, SamplingConfig(top_p=1.0), seed=0, injection=one.injection)[0]
            for one in (adapted, blended)
        )
        assert not np.array_equal(first, second), "and it is heard"
    for config, fingerprint, said in (
        (replace(by_text, bridge=diffusion_run), FINGERPRINT, "an adapter to the qformer"),
        (lent, "e" * 64, "found an adapter to the model ffffffffffff"),
        (
            replace(lent, injecting=replace(injecting, adapter=qformer_run)),
            FINGERPRINT,
            "model_type 'qformer'; allowed: adapter",
        ),
        (
            replace(lent, injecting=replace(injecting, adapter=tmp_path / "absent")),
            FINGERPRINT,
            "--adapter .* no such folder",
        ),
    ):
        with pytest.raises(CheckpointError, match=said) as refusal:
            orders_of(config, ControlConfig(), base, fingerprint)
        assert "\n" not in str(refusal.value)


def test_an_adapter_to_a_soft_prompt_takes_no_summaries_of_a_piece(
    base, encoder, midi_files, tmp_path
) -> None:
    soft = write_run(tmp_path / "soft", QFormer, QFormerConfig, encoder, layer=0)
    run = write_adapter(tmp_path / "adapter", soft)
    injecting = InjectingConfig(strategy="adapter", adapter=run)
    (order,) = orders(TextConfig(text=("calm",), bridge=soft, injecting=injecting), base)
    assert order.injection and order.injection.layer == 0
    with pytest.raises(CheckpointError, match="enter after layer 0, these enter after layer 3"):
        orders(TextConfig(summaries_from=midi_files[0], injecting=injecting), base)


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


def test_a_text_without_drums_has_none_with_strict_and_the_prefix_never_names_them(
    base, qformer_run, encoder, tmp_path
) -> None:
    run = Path(shutil.copytree(qformer_run, tmp_path / "run"))
    config = TextConfig(text=("calm, no drums",), bridge=run, strict=True)
    asked = ControlConfig(bars=2)

    def ask(named: tuple[int, ...] = (), has_drums: bool | None = False, **own: Any) -> Order:
        said = replace(NOTHING, instruments=named)
        save_heads(run / "model", heads_that_say(said, encoder, has_drums))
        strict = own.pop("strict", True)
        (order,) = orders(replace(config, strict=strict), base, replace(asked, **own))
        return order

    everything_else = tuple(range(1, grid.NUM_INSTRUMENTS))
    denied = ask()
    assert denied.controls.instrument_indices == everything_else
    assert np.array_equal(denied.controls.prefix(denied.told), asked.prefix())
    for ids in generate(
        base,
        denied.controls,
        SamplingConfig(top_p=1.0),
        num_samples=4,
        injection=denied.injection,
        told=denied.told,
    ):
        assert grid.DRUMS not in decode(ids).instrument
    assert ask(strict=False).controls == ask(has_drums=None).controls == asked
    assert ask(has_drums=True).controls == asked, "others may join them"
    # Those that are all that play, and the user's own, say it themselves.
    assert ask((1, 41)).controls.instrument_indices == (1, 41)
    own = ask(instruments=("drums", "0"))
    assert own.controls.instrument_indices == (grid.DRUMS, 1)

    config = replace(config, text=("0-0: calm", "1-1: loud"))
    assert ask().controls.instrument_indices == everything_else


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


@pytest.mark.parametrize("strict", [False, True])
def test_no_drums_of_the_users_own_leaves_the_others_that_a_text_names(
    base, qformer_run, encoder, tmp_path, strict
) -> None:
    run = Path(shutil.copytree(qformer_run, tmp_path / "run"))
    config = TextConfig(text=("a band",), bridge=run, strict=strict)
    everything_else = tuple(range(1, grid.NUM_INSTRUMENTS))
    for named, playing, told in (
        ((grid.DRUMS, 41), (41,) if strict else everything_else, (41,)),
        ((grid.DRUMS,), everything_else, ()),
    ):
        said = replace(NOTHING, instruments=named)
        save_heads(run / "model", heads_that_say(said, encoder))
        (order,) = orders(config, base, ControlConfig(bars=1, drums=False))
        assert order.controls.instrument_indices == playing
        assert read_prefix(order.controls.prefix(order.told)).instruments == told


def test_a_text_that_says_its_length_sets_the_bars_where_nobody_else_does(
    base, qformer_run, encoder, tmp_path
) -> None:
    run = Path(shutil.copytree(qformer_run, tmp_path / "run"))
    save_heads(run / "model", heads_that_say(replace(SAID, length=int(length_bin(8))), encoder))
    config = TextConfig(text=("a short piece", "eight, or 7 bars"), bridge=run)

    def bars(config: TextConfig, controls: ControlConfig | None = None) -> list[int]:
        found = orders(config, base, controls)
        assert [summaries(one).shape[1] for one in found] == [o.controls.num_bars for o in found]
        return [order.controls.num_bars for order in found]

    assert bars(config) == [8, 7]
    assert bars(replace(config, strict=True)) == [8, 7]
    assert bars(config, ControlConfig(bars=3)) == [3, 3]
    assert bars(replace(config, attributes=False)) == [16, 16]
    assert bars(replace(config, text=("0-1: a short piece", "2-4: loud"))) == [5]
    (order, _) = orders(config, base)
    assert np.array_equal(order.controls.prefix(order.told), order.controls.prefix(SAID))


def test_strict_with_a_bridge_that_reads_no_attributes_is_refused(base, diffusion_run) -> None:
    config = TextConfig(text=("calm",), bridge=diffusion_run, strict=True)
    with pytest.raises(GenerationError, match=r"--strict with --bridge .* no attribute heads"):
        orders(config, base)


def test_instruments_are_told_only_where_those_named_are_all_that_play() -> None:
    assert understood(SaidAttributes(SAID, are_all_instruments=True)) == SAID
    assert understood(SaidAttributes(SAID)) == replace(SAID, instruments=())


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
