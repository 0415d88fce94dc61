"""What the judge hears is what was asked for: order, sections, told and kept attributes."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meloformer.bridge.text_to_summaries import FlowConfig, summaries_of_texts
from meloformer.errors import CheckpointError
from meloformer.evaluation.control_generator import BridgeGenerator, load_generator
from meloformer.evaluation.control_rows import Request
from meloformer.generation.controls import NOTHING
from meloformer.generation.injecting import InjectingConfig
from meloformer.midi.grid import DRUMS, METRE_INDEX, TEMPOS_BPM
from meloformer.tokens.attributes import Attributes, read_prefix
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import Kind, length_bin, token_id
from tests.bridge.adapter_folders import write_adapter
from tests.evaluation.judged_models import WIDTH, write_base, write_models
from tests.generation.steered_models import heads_that_say


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def generator(folder: Path) -> BridgeGenerator:
    return load_generator(
        folder / "base", folder / "bridge", device="cpu", text_encoder=str(folder / "qwen")
    )


def ask(*sections: tuple[str, int], way="summaries", seed=1, **more) -> Request:
    num_bars = sum(bars for _, bars in sections) or 2
    return Request(sections=sections, num_bars=num_bars, way=way, seed=seed, **more)


def test_pieces_come_back_in_the_order_of_their_requests(generator) -> None:
    requests = [
        ask(("calm", bars), way=way)
        for bars, way in ((1, "summaries"), (3, "attributes"), (2, "summaries"), (1, "strict"))
    ]
    written = generator.generate([*requests, ask()])
    assert [decode(one.ids).num_bars for one in written] == [1, 3, 2, 1, 2]
    assert [one.said is None for one in written] == [True, False, True, False, True]
    for request, one in zip(requests, written, strict=False):
        assert generator.generate([request])[0].ids.tolist() == one.ids.tolist()


def test_one_text_is_what_the_bridge_says_and_two_texts_each_hold_their_end(generator) -> None:
    alone = generator.summaries([("calm", 16)], seed=3)
    (direct_SD,) = summaries_of_texts(
        generator.bridge, generator.encoder, ["calm"], 16, FlowConfig(), seed=3
    )
    assert torch.allclose(alone, direct_SD, atol=1e-6)
    other = generator.summaries([("loud", 16)], seed=3)
    both = generator.summaries([("calm", 8), ("loud", 8)], seed=3)
    assert torch.allclose(both[:6], alone[:6], atol=1e-6)
    assert torch.allclose(both[10:], other[10:], atol=1e-6)
    assert not torch.allclose(both[7:9], alone[7:9], atol=1e-6)


def test_strict_keeps_what_attributes_only_tell(generator) -> None:
    tempo, metre = 12, METRE_INDEX[7, 8]
    wished = Attributes(tempo=tempo, metre=metre, key=3, instruments=(5,))
    told, kept = generator.generate(
        [ask(("calm", 2), way=way, attributes=wished) for way in ("attributes", "strict")]
    )
    for one in (told, kept):
        prefix = read_prefix(one.ids)
        assert (prefix.tempo, prefix.metre, prefix.key) == (tempo, metre, 3)
        assert prefix.length == length_bin(2) and one.said == wished
    music = decode(kept.ids)
    assert set(TEMPOS_BPM[music.bar_tempo]) == {TEMPOS_BPM[tempo]}
    assert set(music.bar_metre) == {metre} and set(music.instrument) == {5}
    # 65 tempos and 100 metres: a model of random weights does not hit them unforced.
    free = decode(told.ids)
    assert set(free.bar_metre) != {metre} or set(free.bar_tempo) != {tempo}


def test_strict_keeps_drums_out_where_a_text_denies_them(generator) -> None:
    model = deepcopy(generator.model)
    with torch.no_grad():  # drums whenever they may play
        model.token_embedding.weight[token_id(Kind.INSTRUMENT, DRUMS), 0] = 4.0
    heads = heads_that_say(NOTHING, generator.encoder, has_drums=False)
    denied = replace(generator, model=model, bridge=replace(generator.bridge, heads=heads))
    ways = ("attributes", "strict")
    told, kept = denied.generate([ask(("no drums", 2), way=way) for way in ways])
    assert DRUMS in decode(told.ids).instrument and DRUMS not in decode(kept.ids).instrument
    assert told.said is None and kept.said is None, "a prefix has no word for it"


def test_summaries_change_what_is_written_and_nobodys_are_none(generator) -> None:
    lent_SD = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    silent, steered = generator.generate([ask(), ask(summaries_SD=lent_SD)])
    (again,) = generator.generate([ask()])
    assert silent.ids.tolist() == again.ids.tolist()
    assert silent.ids.tolist() != steered.ids.tolist()
    assert read_prefix(silent.ids).tempo is None


def test_an_adapter_says_what_becomes_of_the_summaries_and_belongs_to_the_bridge(
    folder, generator, tmp_path
) -> None:
    run = write_adapter(tmp_path / "adapter", folder / "bridge")
    injecting = InjectingConfig(strategy="adapter", adapter=run)
    more = {"device": "cpu", "text_encoder": str(folder / "qwen"), "injecting": injecting}
    adapted = load_generator(folder / "base", folder / "bridge", **more)
    assert adapted.describe()["injection"] == "adapter, after layer 3"
    assert generator.describe()["injection"] == "blend, alpha 0.7, after layer 3"
    # Long enough for a later bar to read what became of an earlier one's summary.
    (one,), (other,) = (by.generate([ask(("calm", 3))]) for by in (adapted, generator))
    assert one.ids.tolist() != other.ids.tolist()
    mask_BS = torch.ones(1, 3, dtype=torch.bool)
    injection = adapted.inject(torch.zeros(1, 3, WIDTH), mask_BS)
    assert injection.adapter is not None and torch.equal(injection.mask_BS, mask_BS)
    with pytest.raises(CheckpointError, match="enter after layer 3, these enter after layer 0"):
        load_generator(folder / "base", folder / "soft_prompt", **more)


def test_a_bridge_of_another_model_is_refused(folder, tmp_path) -> None:
    other = write_base(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="trained on"):
        load_generator(other, folder / "bridge", device="cpu", text_encoder=str(folder / "qwen"))
